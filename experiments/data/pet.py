"""Oxford-IIIT Pet: pet against background. Its layout, as the archives unpack:

    ROOT/images/NAME.jpg                          of many sizes
    ROOT/annotations/trimaps/NAME.png             1 pet, 2 background, 3 not classified
    ROOT/annotations/{trainval,test}.txt          NAME CLASS-ID SPECIES BREED-ID, one image a line

Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012. Licence of the set: CC BY-SA 4.0. Layout and splits
are those of smp's OxfordPetDataset.
"""

from pathlib import Path

from segmentation_models_pytorch.datasets import OxfordPetDataset

from experiments.data.reading import Found, Labels, Pair

# Value 3 is a band along the outline of the pet and what it wears. smp's own dataset counts it as pet: scores made with
# that are not comparable.
PET = Labels(
    class_names=("background", "pet"),
    colors=((70, 90, 120), (240, 170, 60), (0, 0, 0)),
    ignore_index=255,
    note="outlines are unlabelled and ignored: scores leave out the hardest pixels, and boundary scores say little",
)
ADVICE = "torchvision.datasets.OxfordIIITPet(FOLDER, download=True) makes a FOLDER/oxford-iiit-pet for --root (0.8 GB)"
FOLDERS, LISTS = ("images", "annotations/trimaps"), ("annotations/trainval.txt", "annotations/test.txt")
MODES = {"train": "train", "val": "valid", "test": "test"}  # our names of the splits, and smp's


def find_pet(root: Path) -> Found:
    """Every pair that the lists name, in smp's splits and their order (3312, 368 and 3669 images); what is wrong with
    the layout and the lists; and the images that no list names.
    """
    missing = [part for part in FOLDERS if not (root / part).is_dir()]
    missing += [part for part in LISTS if not (root / part).is_file()]
    if missing:
        return Found([], [*(f"{part} is missing" for part in missing), ADVICE], [])
    pairs: dict[str, Pair] = {}
    problems: list[str] = []
    for split, mode in MODES.items():
        for name in filter(None, OxfordPetDataset(str(root), mode).filenames):  # an empty list reads as one empty name
            if "/" in name:
                problems.append(f"{name!r}, listed for {split}, is not the name of a file")
            elif name in pairs:
                problems.append(f"{name!r} is listed twice, for {pairs[name].split} and for {split}")
            else:
                files = root / "images" / f"{name}.jpg", root / "annotations/trimaps" / f"{name}.png"
                pairs[name] = Pair(split, name, *files)
    named = {pair.image for pair in pairs.values()}
    others = [f"images/{path.name}: in no list" for path in sorted((root / "images").iterdir()) if path not in named]
    return Found(list(pairs.values()), problems, others, values={1: 1, 2: 0, 3: PET.ignore_index})
