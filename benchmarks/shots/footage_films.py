"""The films to render, and the clips with one shot each that they are cut from.

No clip is in films of both splits.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAIN = [
    "vf1",
    "vf2",
    "vf5",
    "vf8",
    "vf10",
    "vf11",
    "vf13",
    "os_test",
    "sv_walking",
    "dvr_traffic",
    "vl22",
    "vl2_3491",
    "aa_yoga",
    "aa_base",
    "aa_dance",
    "vll_birthday",
    "vll_skate",
    "vll_dogbark",
    "vll_girl",
    "mdn_crystal",
    "mdn_elf",
    "mdn_frog",
    "mdn_monster",
    "mdn_pig",
    "mdn_rabbit",
    "surfer",
    "dj_v2",
    "dj_v5",
    "sam2_dog_catch",
    "sam2_coffee_pour",
    "dog_eating_14s",
    "intel_car_topview_30s",
    "flower_bloom",
    "pancake",
    "tennis_an",
    "stacks",
]
TEST = [
    "vl1",
    "vl9",
    "vl2_103",
    "ae_cal",
    "launch2",
    "os_new",
    "os_orig0",
    "dj_v4",
    "dj_v10",
    "chaplin",
    "mm_struct",
    "vll_applause",
    "vll_boat",
    "sf_tennis",
    "sk_carphone",
    "vf7",
    "vf14",
    "vf15",
]


@dataclass(frozen=True)
class Film:
    """A film to render. `build` names a way of footage_render; `quality` is a CRF."""

    name: str
    kind: str
    build: str
    split: str
    size: tuple[int, int]
    rate: float
    seconds: float
    quality: int = 26
    codec: str = "libx264"
    keys: int = 250


_S, _M, _L, _V, _T = (320, 180), (480, 270), (512, 288), (270, 480), (384, 288)
FILMS = (
    Film("mixed_1.mp4", "montage", "mixed", "train", _L, 25, 36, 24),
    Film("mixed_2.mp4", "montage", "mixed", "train", _S, 30000 / 1001, 36, 30),
    Film("mixed_3.mp4", "phone", "mixed", "train", _V, 30, 36, 28),
    Film("mixed_4.avi", "montage", "mixed", "train", _T, 25, 36, 24, "mpeg4"),
    Film("mixed_5.webm", "montage", "mixed", "train", _M, 24, 36, 30, "libvpx"),
    Film("jumps_1.mp4", "jump cuts", "jumps", "train", _L, 25, 50, 25),
    Film("jumps_2.mp4", "jump cuts", "jumps", "train", _S, 30, 36, 30),
    Film("jumps_3.mp4", "jump cuts", "jumps", "train", _M, 24, 36, 27),
    Film("gradual_1.mp4", "gradual", "gradual", "train", _L, 25, 60, 24),
    Film("gradual_2.mp4", "gradual", "gradual", "train", _S, 24, 36, 29),
    Film("gradual_3.mp4", "gradual", "gradual", "train", _M, 30, 36, 27),
    Film("flashes_1.mp4", "flashes", "flashes", "train", _M, 25, 50, 26),
    Film("flashes_2.mp4", "flashes", "flashes", "train", _S, 30, 36, 29),
    Film("cameras_1.mp4", "camera", "cameras", "train", _M, 25, 45, 26),
    Film("cameras_2.mp4", "camera", "cameras", "train", _S, 50, 36, 29),
    Film("overlays_1.mp4", "overlays", "overlays", "train", _L, 25, 50, 26),
    Film("overlays_2.mp4", "overlays", "overlays", "train", _M, 30, 36, 28),
    Film("dark_1.mp4", "dark", "dim mixed", "train", _M, 25, 45, 26),
    Film("dark_2.mp4", "dark", "dim gradual", "train", _S, 24, 36, 28),
    Film("old_1.mp4", "black-and-white", "old mixed", "train", _T, 24, 36, 28),
    Film("blended_1.mp4", "montage", "blended mixed", "train", _M, 25, 36, 27),
    Film("repeated_1.mp4", "montage", "repeated mixed", "train", _S, 50, 30, 28),
    Film("slides_1.mp4", "slides", "slides", "train", _L, 25, 45, 28),
    Film("slides_2.mp4", "slides", "slides", "train", _M, 15, 45, 30),
    Film("animation_1.mp4", "animation", "animation", "train", _M, 24, 36, 26),
    Film("animation_2.mp4", "animation", "animation", "train", _S, 25, 36, 29),
    Film("game_1.mp4", "game", "game", "train", _M, 30, 36, 27),
    Film("game_2.mp4", "game", "game", "train", _S, 60, 30, 29),
    Film("mixed_t1.mp4", "montage", "mixed", "test", _M, 25, 36, 27),
    Film("mixed_t2.mp4", "phone", "mixed", "test", _V, 30, 36, 29),
    Film("jumps_t1.mp4", "jump cuts", "jumps", "test", _M, 25, 36, 27),
    Film("gradual_t1.mp4", "gradual", "gradual", "test", _M, 25, 36, 26),
    Film("gradual_t2.mp4", "gradual", "gradual", "test", _S, 30, 36, 29),
    Film("flashes_t1.mp4", "flashes", "flashes", "test", _M, 25, 36, 27),
    Film("cameras_t1.mp4", "camera", "cameras", "test", _M, 30, 36, 27),
    Film("overlays_t1.mp4", "overlays", "overlays", "test", _M, 25, 36, 27),
    Film("dark_t1.mp4", "dark", "dim mixed", "test", _M, 24, 36, 27),
    Film("old_t1.mp4", "black-and-white", "old mixed", "test", _T, 24, 36, 28),
    Film("slides_t1.mp4", "slides", "slides", "test", _M, 25, 45, 28),
    Film("animation_t1.mp4", "animation", "animation", "test", _M, 24, 36, 27),
    Film("game_t1.mp4", "game", "game", "test", _M, 30, 36, 27),
)
