"""What test images belong to: by a pattern, by a table, and by the names of CamVid."""

from collections import Counter
from pathlib import Path

import pytest
from sets import labels, load_set, picture, write_pair, write_set

from experiments.data import groups_id, load
from experiments.records.options import DataOptions


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Test images d, p1_a, p1_b and p2_a."""
    write_set(tmp_path)
    for number, name in enumerate(("p1_a", "p1_b", "p2_a")):
        write_pair(tmp_path, number, f"test/{name}.png")
    return tmp_path


def test_each_image_stands_for_itself_unless_asked(tree: Path) -> None:
    assert load_set(tree).test.groups == ()


def test_a_pattern(tree: Path) -> None:
    data = load_set(tree, groups=r"^(p\d|d)")
    assert data.test.groups == ("d", "p1", "p1", "p2")
    with pytest.raises(ValueError, match="--groups must give each test image a group; none for 1 of 4: d"):
        load_set(tree, groups=r"^(p\d)")


def test_other_groups_have_another_digest(tree: Path) -> None:
    """By which one folder refuses rows of both; groups that are found in another way are the same."""
    assert groups_id(load_set(tree)) is None
    first, same, other = (groups_id(load_set(tree, groups=rule)) for rule in (r"^(p\d|d)", r"^(p.|.)", "^(.)"))
    assert first == same
    assert len({None, first, other}) == 3


def test_a_table(tree: Path) -> None:
    path = tree / "GROUPS.CSV"
    path.write_text('\ufeffgroup,name\r\n"x, y",d\r\nfilm 1,p1_a\r\nfilm 1,p1_b\r\nfilm 2,p2_a\r\nfilm 1,a\r\n')
    data = load_set(tree, groups=str(path))
    assert data.test.groups == ("x, y", "film 1", "film 1", "film 2")
    path.write_text("name,group\np1_a,1\np1_b,1\n")
    with pytest.raises(ValueError, match="none for 2 of 4: d, p2_a"):
        load_set(tree, groups=str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name;group\nd;1\n", "cannot be read"),
        (b"name,group\nd,1\np1_a\n", "each line must have a name and its one group, got p1_a, "),
        (b"name,group\nd,1\nd,2\n", "each line must have a name and its one group, got d, 2"),
        (b'name,group\n"d', "cannot be read"),
        (b"name,group\n\xff,1\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_bad_tables(tree: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tree / "g.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_set(tree, groups=str(tree / "g.csv"))
    assert f"--groups {tree / 'g.csv'}: " in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("p[", "--groups must be a regular expression"),
        ("p1", "--groups must have a group in parentheses"),
        ("", "--groups must have a group in parentheses"),
    ],
)
def test_bad_patterns(tree: Path, rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_set(tree, groups=rule)


def write_camvid(root: Path, names: list[str]) -> DataOptions:
    """One image under many names."""
    picture(0, 6, 8).save(root / "image.png")
    labels(0, 6, 8).point([3] * 256).save(root / "mask.png")
    for split in ("train", "val", "test"):
        for kind in ("image", "mask"):
            (root / f"{kind}s" / split).mkdir(parents=True)
            for name in names if split == "test" else names[:1]:
                (root / f"{kind}s" / split / f"{name}.png").hardlink_to(root / f"{kind}.png")
    return DataOptions(data="camvid", root=root)


def test_camvid_is_grouped_by_drive_and_20_seconds(tmp_path: Path) -> None:
    """The names of its test split: one frame in thirty, that is one a second, of two drives."""
    names = [f"0001TP_{frame:06d}" for frame in range(8550, 10381, 30)]
    names += [f"Seq05VD_f{frame:05d}" for frame in range(0, 5101, 30)]
    test = load(write_camvid(tmp_path, names)).test
    assert len(test.names) == 233
    sizes = Counter(test.groups)
    assert len(sizes) == 13
    assert max(sizes.values()) == 20
    frames: dict[str, list[int]] = {}
    for name, group in zip(test.names, test.groups, strict=True):
        drive, frame = name.split("_")
        assert group.startswith(drive)
        frames.setdefault(group, []).append(int(frame.lstrip("f")))
    assert all(values == list(range(values[0], values[-1] + 1, 30)) for values in frames.values())


def test_other_names_in_the_place_of_camvid_need_groups(tmp_path: Path) -> None:
    options = write_camvid(tmp_path, ["first", "second"])
    with pytest.raises(ValueError, match=r"DRIVE_NUMBER.* none for 2 of 2: first, second"):
        load(options)
    assert load(DataOptions(data="camvid", root=tmp_path, groups="(.)")).test.groups == ("f", "s")
