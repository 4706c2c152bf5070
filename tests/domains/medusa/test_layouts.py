import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.domains.medical.medusa import data, layouts, ricord, tables
from zoo.domains.medical.medusa.entries import Entry
from zoo.domains.medical.medusa.survey import confounded, survey
from zoo.errors import DataError

from .conftest import DATA, configure
from .writers import (
    RSNA_HEAD,
    binary_rows,
    picture,
    write_covidx,
    write_dicom,
    write_image,
    write_ricord,
    write_rsna,
)

ROWS = {"train": binary_rows("train", 20), "test": binary_rows("test", 8)}


def entries_of(root: Path, **settings: Any) -> dict[str, Entry]:
    found = layouts.find(configure(root, **settings).data)
    return {e.name: e for e in found.entries}


def findings_of(root: Path, level: str = "error", deep: bool = False, **settings: Any) -> list[str]:
    lines = [f for f in data.check(configure(root, **settings), deep=deep) if f.level == level]
    assert all("\n" not in f.line() for f in lines)
    return [f.line() for f in lines]


def one_error(root: Path, *words: str, **settings: Any) -> str:
    """The one line that checking gives; opening refuses too."""
    lines = findings_of(root, **settings)
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]
    with pytest.raises(DataError):
        data.open_splits(configure(root, **settings))
    return lines[0]


# -- COVIDx -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "lists"),
    [
        ("{part}", "{part}.txt"),
        ("data/{part}", "labels/{part}_COVIDx9B.txt"),
        ("images", "{part}_split.txt"),
        ("competition_{part}", "{part}.txt"),
    ],
)
def test_covidx_places(tmp_path: Path, folder: str, lists: str) -> None:
    write_covidx(tmp_path, ROWS, folder=folder, lists=lists)
    splits = data.open_splits(configure(tmp_path))
    assert {p: len(s.ids) for p, s in splits.items()} == {"train": 18, "val": 2, "test": 8}
    assert list(splits["test"].ids) == [f"test-{i}.png" for i in range(8)]


def test_covidx_with_a_validation_list(tmp_path: Path) -> None:
    write_covidx(tmp_path, ROWS | {"val": binary_rows("val", 4)})
    splits = data.open_splits(configure(tmp_path))
    assert {p: len(s.ids) for p, s in splits.items()} == {"train": 20, "val": 4, "test": 8}


def test_covidx_versions_have_to_be_chosen(tmp_path: Path) -> None:
    write_covidx(tmp_path, ROWS, folder="data/{part}", lists="labels/{part}_COVIDx9B.txt")
    three = {
        part: [
            r.replace("negative", ("normal", "pneumonia")[i % 4 // 2]) for i, r in enumerate(rows)
        ]
        for part, rows in ROWS.items()
    }
    three = {p: [r.replace("positive", "COVID-19") for r in rows] for p, rows in three.items()}
    for part, rows in three.items():
        (tmp_path / f"labels/{part}_COVIDx9A.txt").write_text("\n".join(rows))
    one_error(tmp_path, "label lists of 2 versions", "data.version", "9A, 9B")
    one_error(tmp_path, "no label list of version '7A'", "9A, 9B", version="7A")
    chosen = data.open_splits(configure(tmp_path, version="COVIDx9a"))
    assert data.facts_of(chosen["train"])["classes"] == ["normal", "pneumonia", "COVID-19"]
    assert data.facts_of(chosen["train"])["positive"] == 2
    assert chosen["test"].labels[:4] == [0, 2, 1, 2]
    named = data.open_splits(configure(tmp_path, labels="labels/train_COVIDx9B.txt"))
    assert data.facts_of(named["train"])["classes"] == ["negative", "positive"]


def test_severity_lists_have_the_worse_level_first(tmp_path: Path) -> None:
    rows = {
        p: [r.replace("negative", "level1").replace("positive", "level2") for r in lines]
        for p, lines in ROWS.items()
    }
    splits = data.open_splits(configure(write_covidx(tmp_path, rows)))
    assert data.facts_of(splits["train"])["classes"] == ["level2", "level1"]
    assert splits["test"].labels[:2] == [1, 0]


def test_covidx_metadata_by_file_and_by_patient(tmp_path: Path) -> None:
    write_covidx(tmp_path, ROWS)
    (tmp_path / "a_metadata.csv").write_bytes(
        "patientid,sex,age,view,imagename,notes\nx,M,51,PA,test-0.png,Überlagerung\n".encode(
            "iso-8859-1"
        )
    )
    (tmp_path / "b.csv").write_text("Patient ID,Patient Gender,Patient Age\ntest1,f,044Y\n")
    (tmp_path / "broken.csv").write_text('sex,age\n"')
    found = entries_of(tmp_path)
    assert found["test/test-0.png"].meta == {"sex": "M", "age": "51", "view": "PA"}
    assert found["test/test-1.png"].meta == {"sex": "F", "age": "44", "view": ""}
    assert found["test/test-2.png"].meta == {}
    assert any("broken.csv" in line for line in findings_of(tmp_path, "warning"))


@pytest.mark.parametrize("body", ["\xa7\xd8;~\n\xfe", "first,second\n1,2\n", ""])
def test_metadata_without_any_known_column_are_told(tmp_path: Path, body: str) -> None:
    write_covidx(tmp_path, ROWS)
    (tmp_path / "labels.csv").write_text("filename,finding\na.png,COVID-19\n")
    (tmp_path / "metadata.csv").write_text(body, encoding="iso-8859-1")
    (line,) = (x for x in findings_of(tmp_path, "warning") if ".csv" in x)
    assert line.startswith(f"{tmp_path / 'metadata.csv'}: ")
    assert "subgroups are not known" in line


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    lost = [f"train-{i}.png" for i in range(5)]
    write_covidx(tmp_path, ROWS, missing=lost)
    line = one_error(tmp_path, "5 of 20 listed files", "train-0.png", "…", "data.missing=skip")
    assert "train-4.png" not in line
    assert "train.txt" in line
    splits = data.open_splits(configure(tmp_path, missing="skip"))
    assert sum(len(s.ids) for s in splits.values()) == 23
    assert splits["train"].notes == ["5 listed radiographs were not used"]
    assert any("5 of 20" in line for line in findings_of(tmp_path, "warning", missing="skip"))


def test_bad_rows_are_one_line_each(tmp_path: Path) -> None:
    write_covidx(tmp_path, ROWS)
    with (tmp_path / "train.txt").open("a") as file:
        file.write("only two.png\nx ../x.png negative cohen\n")
    lines = findings_of(tmp_path)
    assert len(lines) == 2
    assert "train.txt:21" in lines[0]
    assert "train.txt:22" in lines[1]
    skipped = findings_of(tmp_path, "warning", on_error="skip")
    assert len(skipped) == 2
    assert sum(len(s.ids) for s in data.open_splits(configure(tmp_path, on_error="skip")).values())


def test_a_patient_in_two_splits_is_told_by_its_rows(tmp_path: Path) -> None:
    rows = {p: list(r) for p, r in ROWS.items()}
    rows["test"].append("train3 other.png positive cohen")
    write_covidx(tmp_path, rows)
    line = one_error(tmp_path, "1 patients are in both", "test.txt:9")
    assert "train3" not in line
    assert "train.txt:4" in line


def test_validation_is_carved_by_patient(tmp_path: Path) -> None:
    rows = {
        "train": [
            f"p{i // 4} t{i}.png {('negative', 'positive')[i // 4 % 2]} cohen" for i in range(60)
        ],
        "test": ROWS["test"],
    }
    write_covidx(tmp_path, rows)
    splits = data.open_splits(configure(tmp_path, val_fraction=0.2))
    assert not set(splits["train"].groups) & set(splits["val"].groups)
    assert len(splits["val"].ids) == 12
    again = data.open_splits(configure(tmp_path, val_fraction=0.2, split_seed=9))
    assert again["val"].ids != splits["val"].ids
    assert "val" not in data.open_splits(configure(tmp_path, val_fraction=0))


def test_the_same_file_in_two_splits_is_a_warning(tmp_path: Path) -> None:
    write_covidx(tmp_path, ROWS)
    body = (tmp_path / "train" / "train-1.png").read_bytes()
    (tmp_path / "test" / "test-1.png").write_bytes(body)
    lines = findings_of(tmp_path, "warning", val_fraction=0)
    assert len(lines) == 1
    assert "1 files seem to be in both 'train' and 'test'" in lines[0]


def test_unknown_labels_and_merging(tmp_path: Path) -> None:
    rows = {p: [*r] for p, r in ROWS.items()}
    rows["train"] += ["q1 q1.png unclear cohen", "q2 q2.png Positive cohen"]
    write_covidx(tmp_path, rows)
    splits = data.open_splits(configure(tmp_path))
    assert data.facts_of(splits["train"])["classes"] == ["negative", "positive", "unclear"]
    one_error(tmp_path, "'unclear'", "data.merge", classes=["negative", "positive"])
    left = configure(tmp_path, merge={"unclear": ""}, classes=["positive", "negative"])
    made = data.open_splits(left)
    assert data.facts_of(made["train"])["classes"] == ["positive", "negative"]
    assert sum(len(s.ids) for s in made.values()) == 29
    assert any(
        "1 labelled 'unclear'" in x for x in findings_of(tmp_path, "info", merge={"unclear": ""})
    )
    one_error(tmp_path, "data.merge names 'nope'", merge={"nope": "positive", "unclear": ""})
    one_error(tmp_path, "at least two different classes", classes=["negative", "negative"])


def test_the_source_confound_is_told(tmp_path: Path) -> None:
    rows = {
        "train": binary_rows("train", 10, "cohen")
        + [f"x{i} x{i}.png negative rsna" for i in range(4)],
        "test": [f"r{i} r{i}.png positive ricord" for i in range(5)]
        + [f"n{i} n{i}.png negative rnsa" for i in range(5)],
    }
    write_covidx(tmp_path, rows)
    lines = findings_of(tmp_path, "warning")
    assert len(lines) == 1
    assert "every 'negative' is from rsna; every 'positive' is from ricord" in lines[0]
    splits = data.open_splits(configure(tmp_path))
    assert any("no clinical result" in note for note in splits["test"].notes)
    assert not splits["train"].notes
    assert data.facts_of(splits["train"])["confound"] == ""
    assert "ricord" in data.facts_of(splits["test"])["confound"]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("a", "negative", 5), ("a", "positive", 5)], ""),
        ([("a", "negative", 5), ("b", "positive", 5)], "every 'negative' is from a"),
        ([("a", "negative", 97), ("b", "positive", 98), ("b", "negative", 5)], "98%"),
        ([("a", "negative", 97), ("b", "negative", 2), ("b", "positive", 3)], ""),
        ([("a", "negative", 50), ("", "positive", 50)], ""),
    ],
)
def test_what_counts_as_a_confound(pairs: list[tuple[str, str, int]], words: str) -> None:
    made = [
        Entry(str(i), Path("x"), str(i), label, source=source)
        for source, label, count in pairs
        for i in range(count)
    ]
    told = confounded(made)
    assert (words in told) if words else not told


# -- RSNA ---------------------------------------------------------------------------------------


def test_rsna(tmp_path: Path) -> None:
    write_rsna(tmp_path, 40)
    splits = data.open_splits(configure(tmp_path))
    assert {p: len(s.ids) for p, s in splits.items()} == {"train": 28, "val": 4, "test": 8}
    for split in splits.values():
        assert sum(split.labels) * 2 == len(split.labels)
        assert all(i.startswith("dicom-") for i in split.ids)
        assert not any("aaaa" in name for name in (*split.ids, *split.groups))
    item = splits["test"].item(0, np.random.default_rng(0))
    assert item["meta"]["view"] == "PA"
    assert int(item["meta"]["age"]) >= 30
    other = data.open_splits(configure(tmp_path, split_seed=2))
    assert other["test"].ids != splits["test"].ids


def test_rsna_split_hardly_moves_when_more_is_downloaded(tmp_path: Path) -> None:
    write_rsna(tmp_path, 60)
    whole = survey(configure(tmp_path)).parts
    for i in range(0, 60, 10):
        (tmp_path / "stage_2_train_images" / f"0000{i:04d}-aaaa-bbbb.dcm").unlink()
    less = survey(configure(tmp_path, missing="skip")).parts
    before, after = ({e.name for e in p["test"]} for p in (whole, less))
    assert len(before & after) >= len(after) - 2


def test_rsna_detailed_classes_and_the_middle_class_left_out(tmp_path: Path) -> None:
    write_rsna(tmp_path, 24)
    settings: dict[str, Any] = {
        "labels": "stage_2_detailed_class_info.csv",
        "layout": "rsna",
        "merge": {
            "No Lung Opacity / Not Normal": "",
            "Normal": "normal",
            "Lung Opacity": "pneumonia",
        },
        "classes": ["normal", "pneumonia"],
    }
    splits = data.open_splits(configure(tmp_path, **settings))
    assert sum(len(s.ids) for s in splits.values()) == 18
    three = data.open_splits(configure(tmp_path, labels=settings["labels"], layout="rsna"))
    assert len(data.facts_of(three["train"])["classes"]) == 3


def test_rsna_pngs_serve_as_well(tmp_path: Path) -> None:
    write_rsna(tmp_path, 20, image=False)
    for i in range(20):
        write_image(tmp_path / "images" / f"0000{i:04d}-aaaa-bbbb.png", picture(i))
    assert sum(len(s.ids) for s in data.open_splits(configure(tmp_path)).values()) == 20


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a1,,,,,1", "box is not four numbers"),
        ("a1,1,2,3,4,0", "Target is 0 but there is a box"),
        ("a1,,,,,2", "Target is '2'"),
        (",,,,,0", "no patientId"),
        ("../a,,,,,0", "no plain name"),
        ("a1,1000,2,30,4,1", "outside of 1024"),
    ],
)
def test_rsna_bad_rows(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "l.csv"
    path.write_text(f"{RSNA_HEAD}ok,,,,,0\n{row}\n")
    labels, findings = tables.rsna_labels(path)
    assert labels == {"ok": "negative"}
    assert len(findings) == 1
    assert words in findings[0].line()
    assert "l.csv:3" in findings[0].line()


def test_rsna_a_patient_is_positive_if_any_row_is(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text(f"{RSNA_HEAD}a,,,,,0\na,1,2,3,4,1\na,,,,,0\nb,,,,,0\n")
    assert tables.rsna_labels(path)[0] == {"a": "positive", "b": "negative"}
    path.write_text("patientId,class\na,Normal\na,Normal\na,Lung Opacity\n")
    labels, findings = tables.rsna_labels(path)
    assert labels == {"a": "Normal"}
    assert "another class" in findings[0].line()
    path.write_text("who,what\na,b\n")
    with pytest.raises(DataError, match="patientId and Target"):
        tables.rsna_labels(path)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real radiographs are not beside this checkout")
def test_real_rsna_rows() -> None:
    labels, findings = tables.rsna_labels(DATA / "rsna_mini" / "stage_2_train_labels.csv")
    assert not findings
    assert len(labels) == 31
    assert labels["00436515-870c-4b36-a041-de91049b9ab4"] == "positive"


# -- RICORD -------------------------------------------------------------------------------------


def test_ricord_severity(tmp_path: Path) -> None:
    write_ricord(tmp_path, 24)
    found = entries_of(tmp_path)
    labels = {name.split("-")[-2]: e.label for name, e in found.items()}
    assert labels["10000"] == "level1"
    assert labels["10001"] == "level2"  # two graders of three
    assert labels["10005"] == "level2"  # a tie goes to the grade met first
    assert "10006" not in labels  # most call it invalid
    assert "10007" not in labels  # nobody graded it
    assert len(found) == 22  # with the LL view left out, the two above too
    infos = findings_of(tmp_path, "info")
    assert any("1 images left out: views other than AP and PA" in line for line in infos)
    assert any("2 images left out: no airspace grade" in line for line in infos)
    splits = data.open_splits(configure(tmp_path))
    assert data.facts_of(splits["train"])["classes"] == ["level2", "level1"]
    names = [*splits["train"].ids, *splits["train"].groups]
    assert not any("SITE2" in name or "419639" in name for name in names)


def test_ricord_study_folders_and_names(tmp_path: Path) -> None:
    write_ricord(tmp_path / "manifest" / "MIDRC-RICORD-1C", 6, annotated=False)
    study = next(tmp_path.glob("*/*/*-SITE2-000004/*"))
    study.rename(study.with_name("chest"))  # the digits are then those of the header
    found = entries_of(tmp_path)
    assert "MIDRC-RICORD-1C-SITE2-000002-10002-0.png" in found
    assert "MIDRC-RICORD-1C-SITE2-000004-10004-0.png" in found
    assert "MIDRC-RICORD-1C-419639-000003-10003-0.png" in found  # the folder is the digits alone
    assert {e.label for e in found.values()} == {"positive"}
    assert {e.source for e in found.values()} == {"ricord"}
    one_error(tmp_path, "images of 'positive' only")


def test_ricord_usable_list_and_boxes(tmp_path: Path) -> None:
    write_ricord(tmp_path, 24)
    names = sorted(entries_of(tmp_path))
    lines = [names[0], f"{names[1]} 4 6 30 46", *names[3:]]
    (tmp_path / ricord.LIST).write_text("\n".join(lines) + "\n")
    found = entries_of(tmp_path)
    assert sorted(found) == [names[0], names[1], *names[3:]]
    assert found[names[1]].box == (4, 6, 30, 46)
    split = next(
        s for s in data.open_splits(configure(tmp_path)).values() if found[names[1]] in s.entries
    )
    raster, _ = split.raster(split.entries.index(found[names[1]]))
    assert raster.grey.shape == (40, 26)
    (tmp_path / ricord.LIST).write_text(f"{names[0]} 4 6 2\n")
    one_error(tmp_path, f"{ricord.LIST}:1", "xmin ymin xmax ymax")


def test_ricord_damaged_files(tmp_path: Path) -> None:
    write_ricord(tmp_path, 12)
    broken = next(tmp_path.glob("*/*/*/1-1.dcm"))
    broken.write_bytes(broken.read_bytes()[:200])
    one_error(tmp_path, str(broken))
    (tmp_path / "x_annotations.json").write_text("{")
    lines = findings_of(tmp_path, labels="x_annotations.json", layout="ricord")
    assert len(lines) == 1
    assert "cannot be read as JSON" in lines[0]


def test_ricord_flat_annotations(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [("1", "Mild Opacities  (1-2 lung zones)"), ("1", "Typical Appearance"), ("2", "")]
    path.write_text(json.dumps([{"StudyInstanceUID": s, "labelName": n} for s, n in rows]))
    assert ricord.severity(path) == {"1": "level1"}
    path.write_text('{"datasets": 3}')
    with pytest.raises(DataError, match=r"MD\.ai"):
        ricord.severity(path)


# -- csv ----------------------------------------------------------------------------------------


def write_csv_folder(root: Path, head: str, rows: list[str], files: list[str]) -> Path:
    for i, name in enumerate(files):
        write_image(root / name, picture(i))
    (root / "table.csv").write_text("\n".join([head, *rows]) + "\n")
    return root


def test_csv_folder(tmp_path: Path) -> None:
    files = [f"images/{i}.png" for i in range(20)]
    rows = [
        f"{i}.png,p{i // 2},{('no', 'yes')[i // 2 % 2]},"
        f"{'test' if i > 15 else 'training'},F,3{i % 9},PA,x,2"
        for i in range(20)
    ]
    head = "File,Patient_ID,Label,Split,Gender,Age,View,Source,Weight"
    write_csv_folder(tmp_path, head, rows, files)
    splits = data.open_splits(configure(tmp_path, val_fraction=0.25))
    assert {p: len(s.ids) for p, s in splits.items()} == {"train": 12, "val": 4, "test": 4}
    item = splits["test"].item(0, np.random.default_rng(0))
    assert item["id"] == "16.png"
    assert item["meta"] == {"sex": "F", "age": "37", "view": "PA"}
    assert (item["source"], item["weight"], item["label"]) == ("x", 2.0, 0)
    assert data.facts_of(splits["train"])["classes"] == ["no", "yes"]


def test_csv_findings_become_covidx_classes(tmp_path: Path) -> None:
    findings = [
        "Pneumonia/Viral/COVID-19",
        "COVID-19, ARDS",
        "Pneumonia/Viral/SARS",
        "No Finding",
        "",
        "Pneumonia/Bacterial/Klebsiella",
        "COVID-19",
    ]
    views = ["PA", "AP Supine", "AP", "AP semi erect", "PA", "", "L"]
    rows = [
        f'q{i},"{f}",{v},q{i}.jpg,images'
        for i, (f, v) in enumerate(zip(findings, views, strict=True))
    ]
    write_csv_folder(
        tmp_path,
        "patientid,finding,view,filename,folder",
        rows,
        [f"images/q{i}.jpg" for i in range(7)],
    )
    found = entries_of(tmp_path)
    assert [e.label for e in found.values()] == ["positive"] * 2 + ["negative"] * 3
    assert "images/q6.jpg" not in found  # lateral
    assert "images/q4.jpg" not in found  # no finding named
    three = entries_of(tmp_path, classes=["normal", "pneumonia", "COVID-19"])
    assert [e.label for e in three.values()] == [
        "COVID-19",
        "COVID-19",
        "pneumonia",
        "normal",
        "pneumonia",
    ]
    raw = entries_of(tmp_path, merge={"SARS": "x"})
    assert [e.label for e in raw.values()][2] == "SARS"
    infos = findings_of(tmp_path, "info")
    assert any("1 rows left out: views other than frontal" in line for line in infos)
    assert any("1 rows left out: no label" in line for line in infos)


def test_csv_as_nih_writes_it(tmp_path: Path) -> None:
    rows = [
        f"0000{i}_000.png,{('No Finding', 'Cardiomegaly')[i % 2]},{i},05{i % 10},M,PA"
        for i in range(12)
    ]
    head = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position"
    write_csv_folder(tmp_path, head, rows, [f"images/0000{i}_000.png" for i in range(12)])
    splits = data.open_splits(configure(tmp_path))
    assert data.facts_of(splits["train"])["classes"] == ["Cardiomegaly", "No Finding"]
    assert splits["test"].item(0, np.random.default_rng(0))["meta"]["sex"] == "M"


def test_csv_dicom_patients_come_from_the_header(tmp_path: Path) -> None:
    for i in range(12):
        write_dicom(tmp_path / f"{i}.dcm", picture(i), PatientID=f"secret{i // 3}", PatientSex="F")
    rows = [f"{i}.dcm,{('a', 'b')[i // 3 % 2]}" for i in range(12)]
    (tmp_path / "table.csv").write_text("file,label\n" + "\n".join(rows))
    splits = data.open_splits(configure(tmp_path, val_fraction=0, test_fraction=0.5))
    assert not set(splits["train"].groups) & set(splits["test"].groups)
    assert {len(set(s.groups)) for s in splits.values()} == {2}
    everything = repr(vars(splits["train"])) + repr(data.check(configure(tmp_path)))
    assert "secret" not in everything


@pytest.mark.parametrize(
    ("head", "row", "words"),
    [
        ("file,label", "../a.png,x", "plain name"),
        ("file,label", "/etc/a.png,x", "plain name"),
        ("file,label,weight", "0.png,x,heavy", "weight 'heavy'"),
        ("file,label,mask", "0.png,x,../m.png", "plain name"),
    ],
)
def test_csv_bad_rows(tmp_path: Path, head: str, row: str, words: str) -> None:
    files = [f"{i}.png" for i in range(8)]
    rows = [f"{i}.png,{('x', 'y')[i % 2]}" + "," * (head.count(",") - 1) for i in range(8)]
    write_csv_folder(tmp_path, head, [*rows[1:], row], files)
    one_error(tmp_path, words, "table.csv:9", val_fraction=0)


def test_csv_choices(tmp_path: Path) -> None:
    write_csv_folder(tmp_path, "file,label", ["0.png,x", "1.png,y"], ["0.png", "1.png"])
    (tmp_path / "other.csv").write_text("file,label\n0.png,y\n")
    one_error(tmp_path, "2 tables", "data.labels=other.csv or table.csv")
    one_error(tmp_path, "none.csv", "cannot be read", labels="none.csv")
    (tmp_path / "other.csv").write_text("file,label\n")
    assert "no rows" in findings_of(tmp_path, labels="other.csv")[0]


@pytest.mark.skipif(not DATA.is_dir(), reason="the real radiographs are not beside this checkout")
def test_real_figure1() -> None:
    """ISO-8859-1, files named by patient, three images of patient 39 under three names."""
    found = entries_of(DATA / "figure1")
    assert len(found) == 27
    assert {found[f"COVID-00039{x}.jpg"].patient for x in "abc"} == {"COVID-00039"}
    assert found["COVID-00023.jpg"].label == "negative"
    assert found["COVID-00021.jpg"].meta == {"sex": "M", "age": "50", "view": "PA"}
    assert found["COVID-00048.png"].path.is_file()


@pytest.mark.skipif(not DATA.is_dir(), reason="the real radiographs are not beside this checkout")
def test_real_covidx() -> None:
    found = data.check(configure(DATA / "covidx_mini"), deep=True)
    assert {f.level for f in found} == {"info"}
    splits = data.open_splits(configure(DATA / "covidx_mini", val_fraction=0))
    assert (len(splits["train"].ids), len(splits["test"].ids)) == (29, 15)
    assert sum(splits["train"].labels) + sum(splits["test"].labels) == 26
    assert splits["train"].item(0, np.random.default_rng(0))["meta"]["view"] in ("PA", "AP")


# -- masks --------------------------------------------------------------------------------------


def write_pair(root: Path, image: str, *masks: str) -> None:
    write_image(root / image, picture(len(image)))
    for i, name in enumerate(masks):
        mask = np.zeros((48, 40), np.uint8)
        mask[10:30, 5 + 15 * i : 18 + 15 * i] = 255
        write_image(root / name, mask)


@pytest.mark.parametrize(
    ("image", "masks"),
    [
        ("{}.jpg", ["{}-mask.png"]),
        ("{}.png", ["{}_mask.png"]),
        ("images/{}.png", ["masks/{}.png"]),
        ("CXR_png/{}.png", ["masks/{}_mask.png"]),
        ("CXR_png/{}.png", ["ManualMask/leftMask/{}.png", "ManualMask/rightMask/{}.png"]),
    ],
)
def test_lung_masks(tmp_path: Path, image: str, masks: list[str]) -> None:
    for i in range(6):
        write_pair(tmp_path, image.format(f"m{i}"), *[m.format(f"m{i}") for m in masks])
    splits = data.open_splits(configure(tmp_path, objective="body"))
    assert sum(len(s.ids) for s in splits.values()) == 6
    item = splits["test"].item(0, np.random.default_rng(0))
    assert item["mask"].shape == (1, 32, 32)
    assert item["mask"].mean() == pytest.approx(len(masks) * 20 * 13 / (48 * 40), abs=0.03)
    assert item["label"] == -1
    assert data.facts_of(splits["train"])["classes"] == []


def test_lung_masks_of_a_covidx_tree(covidx: Path) -> None:
    splits = data.open_splits(configure(covidx, objective="body"))
    assert sum(len(s.ids) for s in splits.values()) == 15  # every third of 44
    assert set(splits) == {"train", "val", "test"}


def test_lung_masks_of_a_csv(tmp_path: Path) -> None:
    for i in range(6):
        write_pair(tmp_path, f"{i}.png", f"lungs/{i}x.png")
    rows = [f"{i}.png,lungs/{i}x.png,{i % 2}" for i in range(6)]
    (tmp_path / "t.csv").write_text("file,mask,label\n" + "\n".join(rows))
    body = data.open_splits(configure(tmp_path, objective="body"))
    assert sum(len(s.ids) for s in body.values()) == 6
    plain = data.open_splits(configure(tmp_path))
    assert plain["train"].item(0, np.random.default_rng(0))["mask"] is not None


def test_masks_that_are_wrong(tmp_path: Path) -> None:
    for i in range(4):
        write_pair(tmp_path, f"m{i}.jpg", f"m{i}-mask.png")
    one_error(tmp_path, "train the body only", "optim.objective=body")
    (tmp_path / "m0.jpg").unlink()
    one_error(tmp_path, "without its radiograph", "m0-mask.png", objective="body")
    one_error(tmp_path / "nothing", "no such folder", objective="body")
    (tmp_path / "empty").mkdir()
    one_error(tmp_path / "empty", "no lung masks", objective="body")


# -- recognition --------------------------------------------------------------------------------


def test_recognition(tmp_path: Path, covidx: Path) -> None:
    assert layouts.recognise(configure(covidx).data) == "covidx"
    assert layouts.recognise(configure(write_rsna(tmp_path / "r", 2)).data) == "rsna"
    assert layouts.recognise(configure(write_ricord(tmp_path / "c", 2)).data) == "ricord"
    (tmp_path / "e").mkdir()
    assert layouts.recognise(configure(tmp_path / "e").data) is None
    one_error(tmp_path / "e", "no radiographs recognised", "data.layout")


def test_folds_by_patient(covidx: Path) -> None:
    tested: list[str] = []
    for fold in data.available_folds(configure(covidx, folds=3)):
        splits = data.open_splits(configure(covidx, folds=3, fold=fold, val_fraction=0.2))
        groups = [set(s.groups) for s in splits.values()]
        assert len(set.union(*groups)) == sum(map(len, groups))
        tested += splits["test"].ids
    assert len(tested) == len(set(tested)) == 44
    one_error(covidx, "none of the 3 folds", folds=3, fold=3)
    one_error(covidx, "needs data.folds", fold=1)
