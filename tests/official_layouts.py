"""Data sets in miniature, laid out and listed as their sites ship them, with the label lists that others published for them."""

from __future__ import annotations

from pathlib import Path

from tests.videos import write_numbers

UCF101 = ("ApplyEyeMakeup", "Archery", "HandstandPushups")
HMDB51 = ("brush_hair", "wave")
KINETICS = ("air drumming", "zumba")
TRAIN, TEST = 4, 2
"""Videos of each class."""


def write_lines(path: Path, lines: list[str]) -> None:
    """A text file of these lines, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_video(path: Path) -> None:
    """Half a second of 64 x 48 pixels."""
    write_numbers(path, frames=13, size=(64, 48))


def write_ucf101(root: Path) -> None:
    """UCF-101, ucfTrainTestlist, and SVFormer's list_ucf_1 and list_ucf_10: one and two of each class, numbered from 0."""
    train: list[list[str]] = []
    test: list[str] = []
    for name in UCF101:
        stem = "v_HandStandPushups" if name == "HandstandPushups" else f"v_{name}"  # as the site spells it
        train.append([f"{name}/{stem}_g{8 + i // 2:02d}_c{1 + i % 2:02d}.avi" for i in range(TRAIN)])
        test += [f"{name}/{stem}_g01_c{1 + i:02d}.avi" for i in range(TEST)]
    lists = root / "ucfTrainTestlist"
    write_lines(lists / "classInd.txt", [f"{number} {name}" for number, name in enumerate(UCF101, 1)])
    write_lines(lists / "trainlist01.txt", [f"{file} {number}" for number, files in enumerate(train, 1) for file in files])
    write_lines(lists / "testlist01.txt", test)
    for folder, each in (("list_ucf_1", 1), ("list_ucf_10", 2)):
        labeled = [(file, number) for number, files in enumerate(train) for file in files[:each]]
        lines = [f"/mnt/blob/datasets/data/ucf101/videos/{file} {number}" for file, number in labeled]
        write_lines(root / folder / "train.csv", lines)
    for file in [*(file for files in train for file in files), *test]:
        write_video(root / "UCF-101" / file)


def write_hmdb51(root: Path) -> None:
    """HMDB51, testTrainMulti_7030_splits with an unused clip of each class, and VideoSSL's lists of 40, 50 and 60 %."""
    pool: list[list[str]] = []
    for name in HMDB51:
        clips = [f"film{i}_{name}_u_nm_np1_ba_goo_0" for i in range(TRAIN + TEST + 1)]
        uses = [1] * TRAIN + [2] * TEST + [0]
        lines = [f"{clip}.avi {use} " for clip, use in zip(clips, uses, strict=True)]
        write_lines(root / "testTrainMulti_7030_splits" / f"{name}_test_split1.txt", lines)
        pool.append([f"{name}/{clip}" for clip, use in zip(clips, uses, strict=True) if use != 2])
        for clip in clips:
            write_video(root / "HMDB51" / name / f"{clip}.avi")
    for percent, each in ((40, 2), (50, 3), (60, 4)):
        labeled = [f"{clip} 13 {number}" for number, clips in enumerate(pool) for clip in clips[-each:]]  # the unused one too
        write_lines(root / f"hmdb51_train_{percent}_percent_labeled_split_1_rawframes.txt", labeled)


def write_kinetics400(root: Path) -> None:
    """K400 with a clip that was never downloaded, train.csv and val.csv, and SVFormer's list_k400_1 and list_k400_10."""
    header = "label,youtube_id,time_start,time_end,split,is_cc"
    rows = {"train": [header], "val": [header]}
    labeled: list[list[str]] = []
    for number, name in enumerate(KINETICS):
        for split, count in (("train", TRAIN), ("val", TEST)):
            ids = [f"-{number}{split[0]}{i}bcJuKJQ" for i in range(count)]
            rows[split] += [f'"{name}",{one},40,50,{split},0' for one in ids]
            for one in ids:
                write_video(root / "K400" / split / f"{one}_000040_000050.mp4")
            if split == "train":
                folder = name.replace(" ", "_")
                labeled.append([f"{folder}/{one}_000040_000050.mp4 {number}" for one in ids])
    rows["train"].append(f'"{KINETICS[0]}",gone_from_web,0,10,train,0')
    for split, lines in rows.items():
        write_lines(root / f"{split}.csv", lines)
    for folder, each in (("list_k400_1", 1), ("list_k400_10", 2)):
        lines = [f"/mnt/blob/datasets/data/kinetics400/videos_train/{one}" for ones in labeled for one in ones[:each]]
        write_lines(root / folder / "train.csv", lines)
