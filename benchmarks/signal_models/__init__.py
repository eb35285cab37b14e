"""Speed and accuracy of the stages whose models come with the extra `signals`, a module each."""
