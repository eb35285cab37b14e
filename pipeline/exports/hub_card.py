"""The card of a Hugging Face dataset: a README whose header `datasets` reads."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import yaml

from clipmill.pipeline.exports.export_shards import Shard
from clipmill.pipeline.exports.request import ExportRequest, Interleaving
from clipmill.pipeline.exports.table_files import VIDEO
from clipmill.schemas.words import counted, plain_hours

CARD = "README.md"
_MOST_LICENCES = 30
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
_TYPES = {
    pa.string(): "string",
    pa.bool_(): "bool",
    pa.float16(): "float16",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.binary(): "binary",
    pa.large_string(): "large_string",
    pa.large_binary(): "large_binary",
    pa.string_view(): "string_view",
    pa.date32(): "date32",
    pa.date64(): "date64",
}


def features(schema: pa.Schema) -> list[dict[str, Any]]:
    """The columns in the form of a card's header."""
    return [{"name": field.name, **_feature(field.name, field.type)} for field in schema]


def _feature(name: str, kind: pa.DataType) -> dict[str, Any]:
    if name == VIDEO and pa.types.is_struct(kind):
        return {"dtype": "video"}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _feature("", kind.value_type)
        # A list of plain values has the short form, `list: string`; lists and structs the long
        # one.
        return {"list": inner["dtype"] if set(inner) == {"dtype"} else inner.get("struct", inner)}
    if pa.types.is_struct(kind):
        return {
            "struct": [{"name": field.name, **_feature(field.name, field.type)} for field in kind]
        }
    if pa.types.is_timestamp(kind):
        zone = f", tz={kind.tz}" if kind.tz else ""
        return {"dtype": f"timestamp[{kind.unit}{zone}]"}
    return {"dtype": _TYPES.get(kind, str(kind))}


def card(
    request: ExportRequest, schema: pa.Schema, shards: Sequence[Shard], manifest: Mapping[str, Any]
) -> str:
    """The whole README."""
    clips = manifest["counts"]["exported"]
    size = sum(shard.size_bytes for shard in shards)
    name = request.subset or "clips"
    head = {
        "license": "other",
        "pretty_name": name,
        "task_categories": ["text-to-video", "video-classification"],
        "tags": ["video", "video-text"],
        "size_categories": [next((word for most, word in _SIZES if clips < most), "n>1T")],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
        ],
        "dataset_info": {
            "features": features(schema),
            "splits": [{"name": "train", "num_bytes": size, "num_examples": clips}],
            "download_size": size,
            "dataset_size": size,
        },
    }
    parts = [
        "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True) + "---",
        f"# {_text(name)}",
        _about(request, manifest),
        "## Counts\n\n" + _counts(manifest),
        "## Columns\n\n" + _columns(request, schema, manifest),
        "## Provenance\n\n" + _provenance(manifest),
        "## Licences\n\n" + _licences(manifest),
        "## How to make it again\n\n" + _again(request, manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _about(request: ExportRequest, manifest: Mapping[str, Any]) -> str:
    media = {
        None: "The videos are not included: a clip is a span of the video at `url`.",
        "copy": "The column `video` holds each clip's file, cut at key frames without re-encoding; "
        "`media_start_seconds` and `media_end_seconds` say what it actually shows.",
        "exact": "The column `video` holds each clip's file, re-encoded so that it holds exactly "
        "the frames of its span.",
    }[request.cut.media if request.cut else None]
    said = (
        f"{counted(manifest['counts']['exported'], 'video clip')} with captions and scores, of "
        f"{counted(manifest['videos'], 'video')}, {plain_hours(manifest['hours'])}. {media}"
    )
    if request.crop is not None:
        said += (
            " Pictures are cropped to what is free of bars and overlays; the columns "
            "`media_crop_…` say which part of the source's picture that is."
        )
    if request.redact:
        said += (
            " Titles, descriptions, uploader names and addresses that reveal them were left out."
        )
    return said


def _counts(manifest: Mapping[str, Any]) -> str:
    counts = manifest["counts"]
    rows = [("clips selected", counts["clips"]), ("in this dataset", counts["exported"])]
    rows += [(f"left out: {reason}", count) for reason, count in counts["left_out"].items()]
    rows += [(f"failed: {kind}", count) for kind, count in counts["failed"].items()]
    return _table(("", "clips"), [(name, f"{count:,}") for name, count in rows])


def _columns(request: ExportRequest, schema: pa.Schema, manifest: Mapping[str, Any]) -> str:
    made = {
        column: stage for stage in manifest["provenance"]["stages"] for column in stage["columns"]
    }
    rows = []
    for field in schema:
        stage = made.get(field.name)
        rows.append((_code(field.name), _code(field.type), "" if stage is None else _maker(stage)))
    text = _table(("column", "type", "made by"), rows)
    return (
        f"{text}\n\nSeconds are presentation time in the source video. A score that could not "
        "be computed is null. Scores of two scorers are on different scales. The text "
        f"required of each clip is {_code(request.caption)}."
    )


def _maker(stage: Mapping[str, Any]) -> str:
    models = ", ".join(_model(model) for model in stage["models"].values())
    return _code(stage["name"]) + (f": {models}" if models else "")


def _model(model: Mapping[str, Any]) -> str:
    revision = f"@{model['revision']}" if model["revision"] else ""
    return _code(f"{model['model']}{revision}")


def _provenance(manifest: Mapping[str, Any]) -> str:
    made = manifest["provenance"]
    lines = [
        f"- clips made by Clipmill {made['code_version']}, recipe {_text(made['recipe'])}, "
        f"run {made['run_id']}"
    ]
    subset = made.get("subset")
    if subset is None:
        lines.append(
            f"- taken from the whole dataset, snapshot `{manifest['clips_of']['catalog']}`"
        )
        if manifest["asked"]["where"] is not None:
            lines.append("- where " + _code(manifest["asked"]["where"]))
        return "\n".join(lines)
    lines += [
        f"- subset {_text(subset['name'])}: recipe {_text(subset['recipe'])}"
        + (f", from {_text(subset['source'])}" if subset["source"] else "")
        + (
            ""
            if subset["verified"] in (True, None)
            else " (unverified: known only from a secondary source)"
        ),
        f"- frozen {str(subset['created_at'])[:10]} with seed {subset['seed']}: "
        f"{counted(subset['n_clips'], 'clip')} of {counted(subset['n_videos'], 'video')}",
        f"- hash over the sorted clip ids: `{subset['hash']}`",
        f"- snapshot of the catalog: `{subset['snapshot']}`",
    ]
    if manifest["asked"]["where"] is not None:
        lines.append("- of these, where " + _code(manifest["asked"]["where"]))
    if subset["rules"]:
        rules = yaml.safe_dump(subset["rules"], sort_keys=False, allow_unicode=True)
        lines.append(
            "- its rules:\n\n" + "\n".join(f"      {line}" for line in rules.rstrip().split("\n"))
        )
    else:
        lines.append("- its rules refer to what was left out here, so they are not shown")
    return "\n".join(lines)


def _licences(manifest: Mapping[str, Any]) -> str:
    counts = list(manifest["licences"].items())
    rows = [(_text(name), f"{count:,}") for name, count in counts[:_MOST_LICENCES]]
    if len(counts) > _MOST_LICENCES:
        rest = sum(count for _, count in counts[_MOST_LICENCES:])
        rows.append((f"{len(counts) - _MOST_LICENCES} further ones", f"{rest:,}"))
    parts = [
        "As stated by the sites. Each video remains under the terms of its owner and "
        "its site; including it here grants no right to it.",
        _table(("licence", "videos"), rows),
    ]
    models = {
        (_model(model), model["licence"])
        for stage in manifest["provenance"]["stages"]
        for model in stage["models"].values()
    }
    if models:
        parts += [
            "The models that made captions and scores have their own licences:",
            _table(
                ("model", "licence"),
                [
                    (name, licence or "see where it was published")
                    for name, licence in sorted(models, key=str)
                ],
            ),
        ]
    return "\n\n".join(parts)


def _again(request: ExportRequest, manifest: Mapping[str, Any]) -> str:
    asked = manifest["asked"]
    # Names without their folders, which would reveal whose machine this was.
    names = [request.dataset.absolute().name, request.output.absolute().name]
    dataset, output = (f"./{name}" if name.startswith("-") else name for name in names)
    words = [
        "clipmill",
        "export",
        dataset,
        "--format",
        request.format,
        "--output",
        output,
        "--media",
        asked["media"],
        "--caption",
        asked["caption"],
    ]
    if asked["subset"] is not None:
        words += ["--subset", asked["subset"]]
    is_shown = asked["where"] == request.where
    if request.where is not None and is_shown:
        words += ["--where", request.where]
    options = {
        "start": "before",
        "encoder": None,
        "crf": None,
        "preset": None,
        "short_side": None,
        "crop": None,
        **asdict(Interleaving()),
    }
    words += [
        word
        for name, usual in options.items()
        if asked.get(name, usual) != usual
        for word in (f"--{name.replace('_', '-')}", str(asked[name]))
    ]
    words += ["--no-audio"] if asked.get("audio") is False else []
    words += ["--redact"] if request.redact else []
    words += ["--keep-uncaptioned" if asked["uncaptioned"] else "--drop-uncaptioned"]
    words += ["--shard-size", str(asked["shard_size"])]
    before = "with the dataset in the same state"
    if asked["subset"] is not None:
        before = (
            "with the frozen subset of that hash (`clipmill subset create` makes the same "
            "one from the same recipe, seed and catalog)"
        )
    lacks = "" if is_shown else " The predicate of `--where` is left out here; add it."
    return (
        f"In the folder that contains the dataset, {before}:\n\n```sh\n{shlex.join(words)}\n```"
        f"{lacks}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _code(value: Any) -> str:
    """Text as code within a table, too."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"


def _text(value: Any) -> str:
    """Text from elsewhere as Markdown: on one line, and without markup."""
    text = " ".join(str(value).split())
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, "&lt;" if sign == "<" else "\\" + sign)
    return text
