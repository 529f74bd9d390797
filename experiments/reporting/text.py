"""What a report says in sentences: a headline, short notes, and where it comes from."""

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from itertools import count, dropwhile, islice

from experiments.records.results import BUDGET, RECIPE, Row, run_of, settings_of
from experiments.reporting.content import Content, Frame
from experiments.reporting.rows import AXES, spelled
from experiments.reporting.tables import number, verdict
from experiments.training.models import encoder_weights

# What commands begin with (records.results).
COMMAND = re.compile(r"(python( -u)?|torchrun( --nnodes=\d+)?( --nproc-per-node=\d+)?) -m experiments\.[a-z_]+( |$)")
SEEDS = 3  # with fewer, only large differences are found
# What columns of the ranking and of the differences mean.
MEANINGS = {
    "95 % interval": "Interval: over images and seeds.",
    "groups": "Configurations that share a letter of groups are not significantly different.",
    "boundary F %": "Boundary F: within 2 pixels.",
    "GFLOPs": "GFLOPs: of one call on one image, two for each multiply-add.",
    "latency ms": "Latency: of one call on one image. Other work on the machine changes it, in each row differently.",
    "smallest to be found": "Smallest to be found: the true difference that would be found four times in five. None: "
    "not even 100 points would be.",
    "made of": "Made of: the pairs of configurations whose differences are averaged.",
}


def headline(content: Content) -> str:
    """The best configuration, its score, and what may be said of its lead."""
    scored = content.table.dropna(subset="test_miou")
    if not len(scored):
        return "No configuration has finished with a score."
    (best, *others), miou = scored["label"], scored["test_miou"].iloc[0]
    effect = next((e for e in content.effects if others and set(e.contrast.weights) == {best, others[0]}), None)
    said = f"{best} reaches {number(miou)} % test mIoU"
    if effect is None:
        return f"{said}."
    # Points of the table of differences: scores of rows are rounded, and would be rounded twice.
    said += f", {number(abs(effect.points))} points above {others[0]}"
    if effect.significant is None:
        return f"{said}. Whether that is more than chance was {verdict(effect)}."
    return f"{said}: {verdict(effect)}."


def notes(content: Content) -> list[str]:
    """What a reader must know beside the tables, one sentence each."""
    rows, data = [item.row for c in content.configurations for item in c.results], content.results.data
    said = [data.note] if data.note else []
    said += [f"{len(data.left_out)} left out of the data, such as {name}." for name in data.left_out[:1]]
    if taken := sum(not row.get("trained", True) for row in rows):
        said.append(f"{taken} of {len(rows)} rows evaluate weights that were trained elsewhere, without more training.")
    files = defaultdict(set)
    for row in rows:
        if row.get("weights_id"):
            files[encoder_weights(spelled(row.get("weights")), row["seed"])].add(row["weights_id"])
    for name, contents in files.items():
        if len(contents) > 1:
            said.append(f"{name} was {len(contents)} different files of weights: the runs of all count as of one.")
    return [*said, *(f"Not compared: {gap}." for gap in content.gaps)]


def on_ranking(content: Content, shown: Frame) -> str:
    """What the columns of the ranking that is shown mean."""
    spread = ["Means over seeds ± standard deviation."] if (content.table["seeds"] > 1).any() else []
    return " ".join([*spread, *_meanings(shown), "More: summary.csv."])


def _meanings(frame: Frame) -> list[str]:
    return [meaning for column, meaning in MEANINGS.items() if column in frame]


def on_differences(content: Content, shown: Frame, seeds: Sequence[str]) -> str:
    """What the differences that are shown rest on, and what is missing. seeds: of more_seeds."""
    effects, comparison = content.effects, content.comparison
    if comparison is None:
        return ""
    kind = "Planned contrasts" if content.planned else "All pairs, as an exploration (plan few with --contrasts)"
    some = f"; the table has {len(shown)} of {len(effects)}, differences.csv all" if len(shown) < len(effects) else ""
    groups = "1 group" if comparison.groups == 1 else f"{comparison.groups} groups"
    grouped = f" in {groups}" if comparison.groups < comparison.images else ""
    text = f"{kind}{some}. Corrected by Holm's method; {comparison.images} test images{grouped}."
    text = " ".join([text, *_meanings(shown)])
    if untested := [effect for effect in effects if effect.significant is None]:
        text += f" {len(untested)} of {len(effects)} not tested, such as {untested[0].name}: {untested[0].reason}."
    return f"{text} To add seeds:" if seeds else text


def more_seeds(content: Content) -> list[str]:
    """The commands that give configurations of one seed SEEDS of them, in the folders where they are.

    Where weights were begun with or evaluated, those come first.
    """
    there: dict[str, set[int]] = {}
    for item in content.results.items:  # also of seeds that diverged
        there.setdefault(_configuration(item.row), set()).add(item.row["seed"])
    found = []
    for row in [c.results[0].row for c in content.configurations if len(c.results) == 1]:
        new = list(islice((seed for seed in count() if seed not in there[_configuration(row)]), SEEDS - 1))
        found.append(with_seeds(_command(row.get("source") or {}), new))
        found.append(with_seeds(_command(row), new if row.get("trained", True) else []))
    return list(filter(None, dict.fromkeys(found)))


def _configuration(row: Row) -> str:
    return json.dumps([run_of(row).configuration, settings_of(row)])


def with_seeds(command: str, seeds: Sequence[int]) -> str:
    """A command of experiments, with other --seeds if there are any; nothing for any other: rows may come from
    elsewhere, and what this returns is pasted into a shell."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if seeds and "--seeds" in words:
        start = words.index("--seeds")
        words[start:] = dropwhile(str.isdigit, words[start + 1 :])
    given = shlex.join([*words, *(["--seeds", *map(str, seeds)] if seeds else [])])
    return given if COMMAND.match(given) else ""


def _command(row: Row) -> str:
    return str(row.get("command") or "")


def commands(rows: Sequence[Row]) -> list[str]:
    """The commands behind the rows, each once; those that trained come before those that evaluated."""
    trained = [_command(row["source"]) for row in rows if row.get("source")]
    return list(filter(None, dict.fromkeys([*trained, *map(_command, rows)])))


def facts(content: Content) -> Frame:
    """What holds for the whole report, as name and value. Values that differ between rows are all listed."""
    rows, data = [item.row for item in content.results.items], content.results.data
    groups = {
        **{"configurations": AXES, "budget of a run": (*BUDGET, "device"), "recipe": RECIPE},
        **{"hardware": ("host", "cpu_capability", "threads", "world_size"), "code": ("commit", "dirty")},
        **{"versions": ("swinx", "torch", "smp", "timm", "numpy", "python"), "image size": ("height", "width")},
    }
    found = [("data", f"{data.name}, {data.images} images" if data.images else data.name)]
    for group, names in groups.items():
        values = {n: ", ".join(dict.fromkeys(spelled(r[n]) for r in rows if r.get(n) is not None)) for n in names}
        found.append((group, "; ".join(f"{n.replace('_', ' ')} {value}" for n, value in values.items() if value)))
    trained = dict.fromkeys(spelled(row["source"].get("commit")) for row in rows if row.get("source"))
    found.append(("trained at commit", ", ".join(trained)))
    times = sorted(str(row.get("time")) for row in rows)
    found.append(("finished", f"{times[0]} to {times[-1]}"))
    return Frame([(name, value) for name, value in found if value], columns=["name", "value"])
