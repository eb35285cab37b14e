"""What a run will take is told before it starts, measured as it goes, and bounded by a budget."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import clipmill
from clipmill.jobs.bill import show_cost, show_plan
from clipmill.pipeline.costs.budget import read_budget
from clipmill.pipeline.costs.resampling import Resampling
from clipmill.pipeline.dataset.shards import ShardMetadata, committed_shards, shard_path
from clipmill.pipeline.engine.metering import Meter, WorkTime
from clipmill.pipeline.recipes.prices import Prices
from clipmill.schemas.errors import UsageError
from clipmill.stages import usage

STAGES = Path(__file__).parent / "own_stages.py"


def recipe(folder: Path, sources: int, **top: object) -> Path:
    """A recipe of words; every source has three clips, and its gate lets two of them in."""
    folder.mkdir(exist_ok=True)
    lines = "".join(f"https://a{n}.test/?clips=3\n" for n in range(sources))
    (folder / "list.txt").write_text(lines)
    path = folder / "words.yaml"
    stages = {
        "fetch_words": {"stage": f"{STAGES}:FetchWords"},
        "cut_words": {"stage": f"{STAGES}:CutWords"},
        "name_words": {"stage": f"{STAGES}:NameWords", "where": "start_seconds >= 1"},
        "count_letters": {"stage": f"{STAGES}:CountLetters"},
    }
    made = {"engine": "local", "shard_videos": 2, "sources": [{"path": "list.txt"}]}
    path.write_text(yaml.safe_dump({**made, **top, "stages": stages}, sort_keys=False))
    return path


def files(dataset: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in dataset.rglob("*")
        if path.is_file()
    }


def values(found: clipmill.Bill) -> dict[str, tuple[float, ...]]:
    return {
        stage.stage: tuple(
            round(one.value) for one in (stage.rows, stage.passed, stage.kept, stage.outputs) if one
        )
        for stage in found.stages
    }


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> tuple[Path, Path, clipmill.RunResult]:
    """A dataset of 40 sources, of which 12 random ones were processed."""
    folder = tmp_path_factory.mktemp("costs")
    path = recipe(folder, 40, prices={"cpu_hour": 3600.0, "gigabyte": 1.0, "currency": "EUR"})
    result = clipmill.run(path, dataset=folder / "dataset", sample=12)
    return path, folder / "dataset", result


def test_a_sample_tells_what_the_rest_takes(sampled):
    path, dataset, result = sampled
    said = next(text for text in result.messages if text.startswith("The rest, judging from"))
    assert "28 sources" in said
    assert "name_words 56" in said
    assert "EUR" in said
    before = files(dataset)
    found = clipmill.plan(path, dataset=dataset)
    assert files(dataset) == before
    assert found.sources == 28
    assert values(found) == {
        "fetch_words": (28, 28, 28, 28),
        "cut_words": (28, 28, 28, 84),
        "name_words": (84, 56, 56, 56),
        "count_letters": (56, 56, 56, 56),
    }
    assert found["name_words"].has_gate
    assert not found.unknown
    assert found.wall_seconds is not None
    assert found.wall_seconds.value > 0
    cpu, money = found.amounts["cpu_seconds"], found.money
    assert cpu is not None
    assert money is not None
    assert cpu.low <= cpu.value <= cpu.high
    assert money.value == pytest.approx(cpu.value, rel=0.01)  # an hour costs 3600
    assert json.loads(json.dumps(found.as_json()))["stages"][2]["passed"]["value"] == 56


def test_a_dry_run_of_a_new_dataset_makes_nothing_and_says_what_is_unknown(tmp_path, capsys):
    path = recipe(tmp_path, 5)
    found = clipmill.plan(path, dataset=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert found.sources == 5
    assert found["fetch_words"].rows.value == 5
    assert found["cut_words"].outputs is None
    assert found.wall_seconds is None
    assert found.unknown == ("fetch_words", "cut_words", "name_words", "count_letters")
    show_plan(found)
    assert "--sample 200" in capsys.readouterr().out


def test_rates_of_another_dataset(sampled, tmp_path):
    _, dataset, _ = sampled
    path = recipe(tmp_path, 10)
    found = clipmill.plan(path, dataset=tmp_path / "new", rates=dataset)
    assert values(found)["count_letters"] == (20, 20, 20, 20)
    assert found["cut_words"].measured_on == "dataset"
    changed = {"cut_words.length": 2.0}
    found = clipmill.plan(path, dataset=tmp_path / "new", rates=dataset, settings=changed)
    assert found["cut_words"].measured_on == "dataset, with other settings"


def test_another_gate_is_tried_on_the_rows_so_far(sampled):
    path, dataset, _ = sampled
    found = clipmill.plan(
        path, dataset=dataset, settings={"name_words.where": "start_seconds >= 2"}
    )
    assert values(found)["name_words"] == (84, 28, 28, 28)


def test_what_was_spent(sampled, capsys):
    _, dataset, _ = sampled
    cost = clipmill.open(dataset).cost()
    assert cost["kept_clips"] == 24
    assert cost["currency"] == "EUR"
    spent = cost["totals"]["spent"]
    assert spent["cpu_seconds"] > 0
    assert spent["requests"] == 0
    assert spent["money"] == pytest.approx(spent["cpu_seconds"], rel=0.01)
    assert sum(one["spent"]["cpu_seconds"] for one in cost["stages"]) == pytest.approx(
        spent["cpu_seconds"], rel=1e-3
    )
    assert cost["totals"]["per_1000"]["seconds"] == pytest.approx(
        spent["seconds"] / 0.024, rel=0.01
    )
    coming = cost["totals"]["next_1000"]["cpu_seconds"]
    assert coming["low"] <= coming["value"] <= coming["high"]
    show_cost(cost)
    assert "the next 1,000" in capsys.readouterr().out
    dear = clipmill.open(dataset).cost({"cpu_hour": 7200})
    assert dear["currency"] == "USD"
    assert dear["totals"]["spent"]["money"] == pytest.approx(2 * spent["cpu_seconds"], rel=0.01)


def test_footers_measure_what_a_step_uses(sampled):
    _, dataset, _ = sampled
    for place in dataset.glob("cut_words/*"):
        shard = committed_shards(place)[0]
        footer = ShardMetadata.read(shard_path(place, shard))
        assert footer.cpu_seconds is not None
        assert footer.written_bytes
    assert footer.tokens_in == 0
    assert footer.not_asked == 0


def test_helpers_that_start_for_a_row_count_as_opening():
    meter, work = Meter(), WorkTime()
    with work.on(meter, "rows"), usage.charged_to(meter.account):
        time.sleep(0.2)
        usage.use(usage.HELPER_CPU_SECONDS, 5.0)
        usage.use(usage.STARTING_CPU_SECONDS, 4.0)
        usage.use(usage.STARTING_SECONDS, 0.15)
        usage.use(usage.STARTING_SECONDS, 0.01)
    found = work.reading(meter, gpus=0)
    assert found["opening_seconds"] == pytest.approx(0.16)
    assert found["opening_cpu_seconds"] == pytest.approx(4.0)
    assert found["cpu_seconds"] == pytest.approx(5.0, abs=0.2)
    rows = found["cpu_seconds"] - found["opening_cpu_seconds"] - found["fixed_cpu_seconds"]
    assert rows == pytest.approx(1.0, abs=0.2)


def line_of(rows: list[float], amounts: list[float]) -> tuple[float, float]:
    groups = [f"{number:06d}" for number in range(len(rows))]
    ones = np.ones(len(rows))
    found = Resampling(groups, 1.0).per_row_and_shard(
        groups, np.asarray(amounts), np.asarray(rows), ones
    )
    assert all(np.isfinite(one).all() and (one >= 0).all() for one in found)
    return float(found[0][0]), float(found[1][0])


def test_what_each_shard_takes_is_told_apart_from_what_rows_take():
    draw = np.random.default_rng(0)
    assert line_of([1, 1, 2, 2, 3], [7, 7, 12, 12, 17]) == pytest.approx((5, 2))
    # All of one size: nothing tells them apart.
    assert line_of([4, 4, 4, 4], [22, 21, 23, 22]) == pytest.approx((5.5, 0))
    # Long and short videos: chance alone must not make a part for shards.
    rows = draw.integers(1, 3, 40).astype(float)
    by_row, by_shard = line_of(list(rows), [draw.gamma(2, 5 * n) for n in rows])
    assert by_row * 16 + by_shard == pytest.approx(160, rel=0.3)
    assert line_of([1, 2, 3], [3, 4, 5])[1] == 0  # too few


def test_a_budget_ends_a_run_in_order(tmp_path):
    path = recipe(tmp_path, 12)
    dataset = tmp_path / "dataset"
    with pytest.raises(clipmill.BudgetSpent, match=r"budget is spent: 1e-05 cpu_hours .* left"):
        clipmill.run(path, dataset=dataset, budget="0.00001 cpu_hours")
    opened = clipmill.open(dataset)
    assert opened.status()["run"]["state"] == "stopped"
    assert opened.status()["stages"][0]["pending"] > 0
    assert opened.verify().faults == []
    done = clipmill.run(path, dataset=dataset, budget=["1 cpu_hour", "2 hours"])
    assert done["count_letters"]["kept"] == 24
    assert opened.status()["run"]["state"] == "done"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lots", "expected an amount and a unit"),
        ("0 cpu_hours", "more than 0"),
        ("5 cpu_huors", "did you mean cpu_hours"),
        ("50 USD", "needs prices"),
        ("50 EUR", "prices.currency=EUR"),
        ("-3 hours", "expected an amount and a unit"),
    ],
)
def test_budgets_that_make_no_sense(text, says):
    with pytest.raises(UsageError, match=says):
        read_budget([text], None)


def test_budgets_of_money():
    with pytest.raises(UsageError, match="unknown unit 'EUR'"):
        read_budget(["50 EUR"], Prices(cpu_hour=1))
    with pytest.raises(UsageError, match="nothing but a currency"):
        read_budget(["50 USD"], Prices())
    budget = read_budget(["2 USD"], Prices(million_tokens=1.0))
    assert budget is not None
    assert budget.spent() is None
    assert not budget.add({"tokens_in": 1_000_000, "tokens_out": 500_000})
    assert budget.add({"tokens_out": 500_000})
    assert "2 USD (spent: 2.00 USD)" in budget.spent()


@pytest.mark.parametrize(
    ("prices", "says"),
    [
        ({"cpu_hours": 1}, "unknown price 'cpu_hours'; did you mean cpu_hour"),
        ({"cpu_hour": -1}, "between 0 and"),
        ({"cpu_hour": float("nan")}, "between 0 and"),
        ({"cpu_hour": "cheap"}, "expected a number"),
        ({"million_tokens": 1, "million_tokens_in": 1}, "not both"),
        ({"currency": "US dollars 5"}, "expected a currency's name"),
    ],
)
def test_prices_that_make_no_sense(tmp_path, prices, says):
    with pytest.raises(UsageError, match=says) as error:
        clipmill.plan(recipe(tmp_path, 1, prices=prices), dataset=tmp_path / "new")
    assert "prices" in str(error.value)
