"""The detector `cascade`: hard cuts and gradual transitions, from thumbnails of 48x27 pixels.

`measures` watches the decode pass: it stores a few numbers per picture, and thumbnails where a
shot may end. `find` works on what is stored, so it opens no video: `candidates` are places that
differ more than their surroundings, `features` describe them, `model` weighs the features, and
`judge` asks a network about those that stay unsure. `fades`, `blends` and `mixes` find gradual
transitions.
"""
