"""Each collection as its owner ships it, in miniature: his folders, his columns, his quirks."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from tests.factories import chest_dataset, chest_pixels
from training.data.checks import check
from training.data.manifest import FINDINGS, Picture, read_manifest, write_manifest
from training.data.readers import READERS, cohen, nih
from training.data.readers.common import age, sex, table, view

COHEN = (
    "patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,went_icu,in_icu,"
    "needed_supplemental_O2,extubated,temperature,pO2_saturation,leukocyte_count,neutrophil_count,lymphocyte_count,"
    "view,modality,date,location,folder,filename,doi,url,license,clinical_notes,other_notes,"
)
NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
FIGURE1 = (
    "patientid,offset,sex,age,finding,survival,temperature,pO2 saturation,view,modality,artifacts/distortion,notes"
)
ACTUALMED = FIGURE1.replace("modality,", "modality,imagename,")
HANNOVER = (
    "patient_id,image_id,sex,age,size,weight,admission_offset,icu_admission_offset,icu_release_offset,death_offset,"
    "modality,projection,crp_offset,crp_val,d-dimer_offset,d-dimer_val,factor_xii_offset,factor_xii_val,ldh_offset,"
    "ldh_val,lymphocytes_offset,lymphocytes_val,neutrophils_offset,neutrophils_val,pco2_offset,pco2_val,po2_offset,"
    "po2_val"
)


def film(root: Path, *places: str) -> None:
    """A phantom for each place, no two alike; PNG or JPEG by the suffix."""
    for place in places:
        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:4])
        cells = chest_pixels(24, 20, bits=8) // 2 + np.random.default_rng(seed).integers(0, 99, (24, 20))
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cells.astype(np.uint8)).save(root / place)


def write_list(file: Path, header: str, *rows: dict[str, str], encoding: str = "utf-8") -> None:
    names = header.split(",")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding=encoding) as text:
        writer = csv.DictWriter(text, names, restval="")
        writer.writerow(dict(zip(names, names, strict=True)))
        writer.writerows(rows)


def by_name(pictures: tuple[Picture, ...]) -> dict[str, Picture]:
    return {picture.path.name: picture for picture in pictures}


def findings(pictures: tuple[Picture, ...]) -> dict[str, str]:
    return {picture.path.name: picture.finding for picture in pictures}


@pytest.fixture
def cohen_root(tmp_path) -> Path:
    x_ray = {"modality": "X-ray", "folder": "images", "view": "PA"}
    ct = {"modality": "CT", "view": "Axial", "finding": "Pneumonia/Viral/COVID-19"}
    rows = [
        {"patientid": "2", "finding": "Pneumonia/Viral/COVID-19", "sex": "M", "age": "65", "filename": "a.jpeg"},
        {"patientid": "2", "finding": "COVID-19, ARDS", "view": "AP Supine", "filename": "b, later.png"},
        {"patientid": "3", "finding": "Pneumonia/Viral/SARS", "view": "L", "license": "CC BY 4.0", "filename": "c.jpg"},
        {"patientid": "5", "finding": "No Finding", "view": "AP Erect", "sex": "F", "filename": "d.png"},
        {"patientid": "6", "finding": "Tuberculosis", "filename": "e.png"},
        {"patientid": "7", "finding": "todo", "filename": "f.png"},
        {"patientid": "7", "finding": "todo", "filename": "g.png"},
        {"patientid": "8", "finding": "Pneumonia", "filename": "lost.png"},
        {"patientid": "9", "finding": "Pneumonia", "filename": "broken.jpg"},
        {"patientid": "10", **ct, "folder": "images", "filename": "slice.png"},
        {"patientid": "10", **ct, "folder": "volumes", "filename": "coronacases_org_001.nii.gz"},
    ]
    write_list(tmp_path / "metadata.csv", COHEN, *({**x_ray, **row} for row in rows))
    names = ("a.jpeg", "b, later.png", "c.jpg", "d.png", "e.png", "f.png", "g.png", "broken.jpg", "slice.png")
    film(tmp_path / "images", *names)
    broken = tmp_path / "images" / "broken.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    return tmp_path


def test_cohen_is_read_by_finding_modality_and_view(cohen_root):
    found = READERS["cohen"](cohen_root)
    assert findings(found.pictures) == {
        "a.jpeg": "covid19",
        "b, later.png": "covid19",
        "c.jpg": "pneumonia",
        "d.png": "normal",
        "e.png": "other_disease",
        "slice.png": "not_cxr",
    }
    assert [picture.view for picture in found.pictures] == ["PA", "AP", "LATERAL", "AP", "PA", "CT"]
    assert [picture.frontal for picture in found.pictures] == [True, True, False, True, True, False]
    first, third = found.pictures[0], found.pictures[2]
    assert (first.patient_id, first.sex, first.age, first.split) == ("cohen-2", "M", "65", "")
    assert (first.labels, first.licence) == ("Pneumonia/Viral/COVID-19", "not stated")
    assert third.licence == "CC BY 4.0"


def test_what_is_left_out_is_named_and_counted_and_why(cohen_root):
    label, volume, lost, broken = READERS["cohen"](cohen_root).problems
    assert label == "2 images: the label 'todo' is none of our findings: images/f.png, images/g.png"
    assert volume == "1 image: a volume (NIfTI), no image: volumes/coronacases_org_001.nii.gz"
    assert lost == f"{cohen_root}/images/lost.png: No such file or directory"
    assert broken.startswith(f"{cohen_root}/images/broken.jpg: broken.jpg: OSError: image file is truncated")


def test_an_image_is_known_by_its_place_and_its_bytes_wherever_the_collection_lies(cohen_root, tmp_path_factory):
    picture = READERS["cohen"](cohen_root).pictures[0]
    assert picture.image_id == hashlib.sha256(b"cohen/images/a.jpeg").hexdigest()[:12]
    assert picture.sha256 == hashlib.sha256(picture.path.read_bytes()).hexdigest()
    moved = tmp_path_factory.mktemp("elsewhere") / "covid-chestxray-dataset-master"
    cohen_root.rename(moved)
    again = READERS["cohen"](moved.parent).pictures[0]  # from the folder around it, too
    assert (again.image_id, again.sha256) == (picture.image_id, picture.sha256)


def test_what_readers_find_is_a_manifest_that_can_be_trained_on(cohen_root, tmp_path):
    found = READERS["cohen"](cohen_root)
    assert check(found.pictures) == []
    write_manifest(found.pictures, tmp_path / "manifest.csv")
    assert read_manifest(tmp_path) == found.pictures


@pytest.mark.parametrize(
    ("label", "finding"),
    [
        ("Pneumonia/Fungal/Pneumocystis", "pneumonia"),
        ("Pneumonia/Viral/Herpes ", "pneumonia"),
        ("Herpes pneumonia, ARDS", "pneumonia"),
        ("Mycoplasma Bacterial Pneumonia", "pneumonia"),
        ("ARDS", "other_disease"),
        ("No finding", "normal"),
        ("Unknown", ""),
        ("", ""),
    ],
)
def test_cohens_labels_of_all_his_versions_are_known(label, finding):
    assert cohen.finding_of(label) == finding


def test_tables_agree_with_the_index_at_hand(data_dir):
    of = {"cohen": cohen.finding_of, "nih": nih.finding_of}
    rows = [p for p in read_manifest(data_dir / "cxr") if p.source in of and p.finding != "not_cxr"]
    assert rows
    assert [p.image_id for p in rows if of[p.source](p.labels) != p.finding] == []


def nih_row(name: str, labels: str, years: str = "58", position: str = "PA") -> dict[str, str]:
    patient = str(int(name.split("_")[0]))
    return {
        "Image Index": name,
        "Finding Labels": labels,
        "Patient ID": patient,
        "Patient Age": years,
        "Patient Gender": "F",
        "View Position": position,
    }


@pytest.mark.parametrize("edition", ["Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"])
def test_chestxray14_is_read_from_its_twelve_folders(tmp_path, edition):
    rows = [
        nih_row("00000001_000.png", "No Finding", "058Y"),
        nih_row("00000001_001.png", "Pneumonia", "414"),
        nih_row("00000002_000.png", "Consolidation|Infiltration|Pneumonia", "013M", "AP"),
        nih_row("00000003_000.png", "Effusion|Pneumonia"),
        nih_row("00000004_000.png", "Cardiomegaly"),
        nih_row("00000005_000.png", "Hernia"),
    ]
    write_list(tmp_path / edition, NIH, *rows)
    film(tmp_path / "images_001" / "images", "00000001_000.png", "00000001_001.png", "00000002_000.png")
    film(tmp_path / "images_012" / "images", "00000003_000.png", "00000004_000.png")
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n")
    (tmp_path / "test_list.txt").write_text("00000002_000.png\n00000003_000.png\n")
    found = READERS["nih"](tmp_path)
    assert list(findings(found.pictures).values()) == [
        *("normal", "pneumonia", "pneumonia", "other_disease", "other_disease")
    ]
    assert [p.split for p in found.pictures] == ["train", "train", "val", "val", ""]
    assert [p.age for p in found.pictures] == ["58", "", "1", "58", "58"]
    assert [p.view for p in found.pictures] == ["PA", "PA", "AP", "PA", "PA"]
    assert {p.patient_id for p in found.pictures} == {"nih-1", "nih-2", "nih-3", "nih-4"}
    assert found.pictures[2].labels == "Consolidation|Infiltration|Pneumonia"
    assert found.problems == (f"{tmp_path}/images/00000005_000.png: No such file or directory",)


def test_chestxray14_is_read_from_one_folder_and_without_lists(tmp_path):
    write_list(tmp_path / "Data_Entry_2017_v2020.csv", NIH, nih_row("00000001_000.png", "No Finding"))
    film(tmp_path / "images", "00000001_000.png")
    (picture,) = READERS["nih"](tmp_path).pictures
    assert (picture.split, picture.sex) == ("", "F")


@pytest.mark.parametrize(
    ("positive", "finding", "labels"),
    [
        ({"No Finding": "1.0"}, "normal", "No Finding"),
        ({"No Finding": "1.0", "Support Devices": "1.0"}, "normal", "No Finding|Support Devices"),
        ({"Pneumonia": "1.0", "Lung Opacity": "1.0", "Edema": "0.0"}, "pneumonia", "Lung Opacity|Pneumonia"),
        ({"Pneumonia": "1.0", "Edema": "1.0"}, "other_disease", "Edema|Pneumonia"),
        ({"Cardiomegaly": "1.0", "Edema": "-1.0"}, "other_disease", "Cardiomegaly|Edema?"),
        ({"Pneumonia": "-1.0", "Edema": "1.0"}, "", "1 image: pneumonia is uncertain"),
        ({"Edema": "-1.0", "Support Devices": "1.0"}, "", "1 image: no finding is positive"),
        ({}, "", "1 image: no finding is positive"),
    ],
)
def test_chexperts_labels_are_positive_negative_uncertain_or_blank(tmp_path, positive, finding, labels):
    home = tmp_path / "CheXpert-v1.0-small"
    place = "train/patient00001/study1/view1_frontal.jpg"
    row = {"Path": f"{home.name}/{place}", "Sex": "Female", "Age": "68", "Frontal/Lateral": "Frontal", "AP/PA": "AP"}
    write_list(home / "train.csv", CHEXPERT, row | positive)
    film(home, place)
    found = READERS["chexpert"](tmp_path)
    if finding:
        assert [(p.finding, p.labels) for p in found.pictures] == [(finding, labels)]
    else:
        assert (found.pictures, found.problems) == ((), (f"{labels}: {place}",))


def test_chexperts_two_lists_are_two_splits(tmp_path):
    common = {"Sex": "Male", "Age": "40", "No Finding": "1.0"}
    frontal, lateral = {"Frontal/Lateral": "Frontal", "AP/PA": "PA"}, {"Frontal/Lateral": "Lateral", "AP/PA": ""}
    places = (
        "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00001/study1/view2_lateral.jpg",
        "valid/patient64541/study1/view1_frontal.jpg",
    )
    rows = [
        common | shown | {"Path": f"CheXpert-v1.0/{place}"}
        for place, shown in zip(places, (frontal, lateral, frontal), strict=True)
    ]
    write_list(tmp_path / "train.csv", CHEXPERT, *rows[:2])
    write_list(tmp_path / "valid.csv", CHEXPERT, rows[2])
    film(tmp_path, *places)
    found = READERS["chexpert"](tmp_path).pictures
    assert [(p.patient_id, p.split, p.view, p.sex, p.age) for p in found] == [
        ("chexpert-patient00001", "train", "PA", "M", "40"),
        ("chexpert-patient00001", "train", "LATERAL", "M", "40"),
        ("chexpert-patient64541", "val", "PA", "M", "40"),
    ]


def test_covidx_is_read_in_all_its_versions_and_keeps_where_an_image_comes_from(tmp_path):
    number = "8989e25c-a698-48fc-b428-fff56931fc8f"
    (tmp_path / "train_COVIDx8A.txt").write_text(
        "3 SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg pneumonia cohen\n"
        "COVID 215 COVID(215).png COVID-19 sirm\n"
        "COVID-00015a COVID-00015a.png COVID-19 fig1\n"
        "ANON170 CR.1.2.840.113564.png COVID-19 actmed\n"
        "3 SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg pneumonia cohen\n"
    )
    (tmp_path / "test_COVIDx5.txt").write_text(f"{number} {number}.png normal\n31 streptococcus.jpg pneumonia\n\n")
    film(tmp_path, *(f"test/{name}" for name in (f"{number}.png", "streptococcus.jpg")))
    film(tmp_path, "train/SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg", "train/COVID(215).png")
    film(tmp_path, "train/COVID-00015a.png", "train/CR.1.2.840.113564.png")
    found = READERS["covidx"](tmp_path)
    assert [(p.source, p.patient_id, p.finding, p.split) for p in found.pictures] == [
        ("cohen", "cohen-3", "pneumonia", "train"),
        ("sirm", "sirm-COVID 215", "covid19", "train"),
        ("figure1", "figure1-COVID-00015", "covid19", "train"),
        ("actualmed", "actualmed-ANON170", "covid19", "train"),
        ("rsna", f"rsna-{number}", "normal", "val"),
        ("covidx", "covidx-31", "pneumonia", "val"),
    ]
    assert len(found.problems) == 1
    assert found.problems[0].startswith("1 image: listed more than once: train/SARS-")


def test_covidx_lists_of_two_classes_have_no_normals(tmp_path):
    (tmp_path / "train.txt").write_text("7 a.png positive ricord\n8 b.png negative rsna\n9 c.png negative rsna\n")
    film(tmp_path / "train", "a.png", "b.png", "c.png")
    found = READERS["covidx"](tmp_path)
    assert findings(found.pictures) == {"a.png": "covid19"}
    assert found.problems[0].startswith("2 images: negative may be normal or pneumonia")


def test_covidx_needs_one_list_for_each_folder_and_a_class_in_each_line(tmp_path):
    film(tmp_path / "train", "a.png")
    with pytest.raises(ValueError, match=r"one list train\*.txt is needed, found none"):
        READERS["covidx"](tmp_path)
    (tmp_path / "train_A.txt").write_text("7 a.png level2 ricord\n")
    with pytest.raises(ValueError, match=r"train_A.txt, line 1: no class among COVID-19, "):
        READERS["covidx"](tmp_path)
    (tmp_path / "train_B.txt").touch()
    with pytest.raises(ValueError, match=r"found train_A.txt, train_B.txt"):
        READERS["covidx"](tmp_path)


def test_kermany_is_read_from_folders_and_names(tmp_path):
    home = tmp_path / "chest_xray"
    film(
        home,
        "train/PNEUMONIA/person100_virus_184.jpeg",
        "train/PNEUMONIA/person100_virus_185.jpeg",
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/NORMAL/NORMAL2-IM-0115-0001-0002.jpeg",
        "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
        "test/PNEUMONIA/person100_bacteria_475.jpeg",
        "test/PNEUMONIA/BACTERIA-1135262-0001.jpeg",
        "test/NORMAL/holiday.jpeg",
    )
    (home / "train" / ".DS_Store").touch()
    film(tmp_path, "__MACOSX/chest_xray/train/NORMAL/IM-0115-0001.jpeg")
    found = READERS["kermany"](tmp_path)
    assert {p.path.name: (p.patient_id, p.labels, p.split) for p in found.pictures} == {
        "person100_virus_184.jpeg": ("kermany-person100", "PNEUMONIA|virus", "train"),
        "person100_virus_185.jpeg": ("kermany-person100", "PNEUMONIA|virus", "train"),
        "IM-0115-0001.jpeg": ("kermany-IM-0115", "NORMAL", "train"),
        "NORMAL2-IM-0115-0001-0002.jpeg": ("kermany-NORMAL2-IM-0115", "NORMAL", "train"),
        "person1946_bacteria_4874.jpeg": ("kermany-person1946", "PNEUMONIA|bacteria", "val"),
        "person100_bacteria_475.jpeg": ("kermany-test-person100", "PNEUMONIA|bacteria", "val"),
        "BACTERIA-1135262-0001.jpeg": ("kermany-test-BACTERIA-1135262", "PNEUMONIA|bacteria", "val"),
    }
    assert {p.finding for p in found.pictures} == {"normal", "pneumonia"}
    assert {(p.view, p.age, p.licence) for p in found.pictures} == {("AP", "", "CC BY 4.0")}
    assert found.problems == ("1 image: the name of the file tells no patient: test/NORMAL/holiday.jpeg",)
    assert check(found.pictures) == []


def test_figure1_is_kept_for_tests_and_its_letters_are_one_patient(tmp_path):
    rows = [
        {"patientid": "COVID-00001", "sex": "M", "age": "33", "finding": "COVID-19", "view": "AP erect"},
        {"patientid": "COVID-00015a", "age": "67+", "finding": "COVID-19", "notes": "low 90’s"},
        {"patientid": "COVID-00015b", "finding": "COVID-19"},
        {"patientid": "COVID-00028", "finding": "No finding"},
        {"patientid": "COVID-00031", "finding": "Pneumonia"},
        {"patientid": "COVID-00005"},
    ]
    write_list(tmp_path / "metadata.csv", FIGURE1, *(r | {"modality": "X-ray"} for r in rows), encoding="cp1252")
    film(tmp_path / "images", "COVID-00001.jpg", "COVID-00015a.png", "COVID-00015b.png", "COVID-00028.jpg")
    found = READERS["figure1"](tmp_path)
    assert {p.path.name: (p.patient_id, p.finding, p.view, p.age) for p in found.pictures} == {
        "COVID-00001.jpg": ("figure1-COVID-00001", "covid19", "AP", "33"),
        "COVID-00015a.png": ("figure1-COVID-00015", "covid19", "", ""),
        "COVID-00015b.png": ("figure1-COVID-00015", "covid19", "", ""),
        "COVID-00028.jpg": ("figure1-COVID-00028", "normal", "", ""),
    }
    assert {p.split for p in found.pictures} == {"external"}
    assert found.problems == (
        "1 image: the finding is empty: images/COVID-00005.jpg",
        f"{tmp_path}/images/COVID-00031.jpg: No such file or directory",
    )


def test_actualmed_names_its_images_in_a_column(tmp_path):
    rows = [
        {"patientid": "ANON196", "view": "PA", "imagename": "CR.1.png", "notes": "Inconclusive, date taken: 20200313"},
        {"patientid": "ANON196", "finding": "COVID-19", "view": "PA", "imagename": "CR.2.png"},
        {"patientid": "ANON91", "finding": "No finding", "view": "AP", "imagename": "CR.3.png"},
    ]
    write_list(tmp_path / "metadata.csv", ACTUALMED, *(row | {"modality": "X-ray"} for row in rows))
    film(tmp_path / "images", "CR.1.png", "CR.2.png", "CR.3.png")
    found = READERS["actualmed"](tmp_path)
    assert [(p.patient_id, p.finding, p.view, p.split) for p in found.pictures] == [
        ("actualmed-ANON196", "covid19", "PA", ""),
        ("actualmed-ANON91", "normal", "AP", ""),
    ]
    assert found.problems == ("1 image: the finding is empty: images/CR.1.png",)


def test_covid_xray_5k_has_the_labels_of_chexpert_in_its_test_folders(tmp_path):
    film(
        tmp_path / "data_upload_v3",
        "train/covid/nejmoa2001191_f5-PA.jpeg",
        "train/non/patient00051-study1-view1_frontal.jpg",
        "train/non/Atelectasis-patient35833-study1-view1_frontal.jpg",
        "test/covid/covid-19-pneumonia-22-day1-pa.png",
        "test/non/No_Finding/patient00003-study1-view1_frontal.jpg",
        "test/non/Pneumonia/patient00004-study2-view1_frontal.jpg",
        "test/non/Pleural_Effusion/patient00007-study2-view1_frontal.jpg",
    )
    found = READERS["covid-xray-5k"](tmp_path).pictures
    assert [(p.patient_id, p.finding, p.labels, p.split) for p in found] == [
        ("cohen-nejmoa2001191_f5-PA", "covid19", "covid", "train"),
        ("chexpert-patient35833", "other_disease", "non|Atelectasis", "train"),
        ("chexpert-patient00051", "other_disease", "non", "train"),
        ("cohen-covid-19-pneumonia-22-day1-pa", "covid19", "covid", "val"),
        ("chexpert-patient00003", "normal", "non|No Finding", "val"),
        ("chexpert-patient00007", "other_disease", "non|Pleural Effusion", "val"),
        ("chexpert-patient00004", "pneumonia", "non|Pneumonia", "val"),
    ]


def test_hannovers_images_from_before_the_illness_are_left_out(tmp_path):
    rows = [
        {"patient_id": "042f06a9", "image_id": "b343e657", "sex": "m", "admission_offset": "-2", "projection": "ap"},
        {"patient_id": "14d9761b", "image_id": "a38e1877", "sex": "w", "admission_offset": "4", "projection": "pa"},
        {"patient_id": "969dd2e0", "image_id": "ada8c494", "sex": "m", "admission_offset": "22", "projection": "pa"},
    ]
    write_list(tmp_path / "data.csv", HANNOVER, *rows)
    film(tmp_path / "png", *(f"{row['image_id']}.png" for row in rows))
    found = READERS["hannover"](tmp_path)
    assert [(p.patient_id, p.finding, p.view, p.sex, p.labels) for p in found.pictures] == [
        ("hannover-042f06a9", "covid19", "AP", "M", "COVID-19"),
        ("hannover-14d9761b", "covid19", "PA", "F", "COVID-19"),
    ]
    assert found.problems == ("1 image: taken 7 days or more before admission: png/ada8c494.png",)


def test_plain_folders_are_findings_and_the_folders_in_them_patients(tmp_path):
    root = tmp_path / "ours"
    film(root, "covid19/a.png", "COVID19/b.jpg", "normal/patient 7/c.png", "normal/patient 7/d.png", "sheep/e.png")
    found = READERS["folders"](root)
    assert sorted((p.patient_id, p.finding, p.labels) for p in found.pictures) == [
        ("ours-COVID19/b.jpg", "covid19", "COVID19"),
        ("ours-covid19/a.png", "covid19", "covid19"),
        ("ours-patient 7", "normal", "normal"),
        ("ours-patient 7", "normal", "normal"),
    ]
    assert found.problems == (f"1 image: the folder is none of {', '.join(FINDINGS)}: sheep/e.png",)


@pytest.mark.parametrize("reader", ["folders", "dicom"])
def test_folders_without_a_finding_are_refused(tmp_path, reader):
    film(tmp_path, "sheep/e.png")
    with pytest.raises(ValueError, match="a folder for each finding is needed: covid19, pneumonia, "):
        READERS[reader](tmp_path)


def dicom(root: Path, place: str, **elements: str | None) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    chest_dataset(**elements).save_as(root / place, enforce_file_format=True)


def test_dicom_is_read_without_telling_who_the_patient_is(tmp_path):
    root = tmp_path / "ward"
    secret = {"PatientID": "4711-SECRET", "PatientName": "Secret^Name", "PatientAge": "058Y", "PatientSex": "F"}
    dicom(root, "covid19/study/I0001", **secret)
    dicom(root, "covid19/study/I0002", **secret, ViewPosition="LL")
    dicom(root, "normal/I0003", ViewPosition=None, BodyPartExamined=None, Modality="DX")
    dicom(root, "not_cxr/I0004", Modality="CT", SOPClassUID=uid.CTImageStorage, BodyPartExamined="HEAD")
    found = READERS["dicom"](root)
    assert found.problems == ()
    assert {p.path.name: (p.finding, p.view, p.sex, p.age) for p in found.pictures} == {
        "I0001": ("covid19", "PA", "F", "58"),
        "I0002": ("covid19", "LATERAL", "F", "58"),
        "I0003": ("normal", "", "", ""),
        "I0004": ("not_cxr", "CT", "", ""),
    }
    pictures = by_name(found.pictures)
    assert pictures["I0001"].patient_id == pictures["I0002"].patient_id != pictures["I0003"].patient_id
    assert "SECRET" not in repr(found.pictures).upper()
    assert len(pictures["I0001"].patient_id) == len("ward-") + 12


@pytest.mark.parametrize(
    ("elements", "why"),
    [
        ({"BodyPartExamined": "HIP"}, "(0018,0015) BodyPartExamined is HIP"),
        ({"Modality": "CT"}, "(0008,0060) Modality is CT"),
        ({"ViewPosition": "LLO"}, "(0018,5101) ViewPosition is LLO"),
        ({"PatientID": ""}, "(0010,0020) PatientID is empty"),
    ],
)
def test_dicom_that_is_no_frontal_or_lateral_chest_of_a_patient_is_left_out(tmp_path, elements, why):
    dicom(tmp_path, "normal/I1", **elements)
    found = READERS["dicom"](tmp_path)
    assert (found.pictures, found.problems) == ((), (f"1 image: {why}: normal/I1",))


def test_dicom_that_cannot_be_read_is_named(tmp_path):
    film(tmp_path, "normal/a.png")
    dicom(tmp_path, "normal/b")
    dicom(tmp_path, "normal/c", PixelData=None)
    whole = (tmp_path / "normal/b").read_bytes()
    (tmp_path / "normal/b").write_bytes(whole[:-400])
    found = READERS["dicom"](tmp_path)
    assert found.pictures == ()
    foreign, truncated, empty = found.problems
    assert foreign == "1 image: no DICOM file (PS3.10): normal/a.png"
    assert truncated.startswith(f"{tmp_path}/normal/b: (7FE0,0010) PixelData")
    assert empty == f"{tmp_path}/normal/c: (7FE0,0010) PixelData is missing or empty"


def test_our_own_form_is_read_as_it_is_and_hashed(tmp_path):
    film(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    (tmp_path / "index.csv").write_text(
        "image_id,path,split,source,patient_id,finding,view,sha256\n"
        "one,images/a.png,train,nih,nih-1,normal,PA,\n"
        f"two,images/b.png,val,nih,nih-2,normal,PA,{'0' * 64}\n"
        "three,images/d.png,val,nih,nih-3,normal,PA,\n"
    )
    found = READERS["index"](tmp_path)
    assert [(p.image_id, p.split) for p in found.pictures] == [("one", "train")]
    assert found.pictures[0].sha256 == hashlib.sha256((tmp_path / "images/a.png").read_bytes()).hexdigest()
    changed, missing = found.problems
    assert changed.endswith("images/b.png: its sha256 is not the listed one: the file was changed")
    assert missing.endswith("images/d.png: No such file or directory")


@pytest.mark.parametrize(
    ("reader", "name", "header", "column"),
    [
        ("cohen", "metadata.csv", COHEN, "modality"),
        ("nih", "Data_Entry_2017_v2020.csv", NIH, "Finding Labels"),
        ("chexpert", "train.csv", CHEXPERT, "Support Devices"),
        ("figure1", "metadata.csv", FIGURE1, "finding"),
        ("actualmed", "metadata.csv", FIGURE1, "imagename"),
        ("hannover", "data.csv", HANNOVER, "admission_offset"),
    ],
)
def test_a_missing_column_is_named_with_its_file(tmp_path, reader, name, header, column):
    kept = [known for known in header.split(",") if known != column]
    write_list(tmp_path / name, ",".join(kept))
    with pytest.raises(ValueError, match=rf"^{tmp_path / name}: column {column} is missing$"):
        READERS[reader](tmp_path)


@pytest.mark.parametrize("reader", sorted(set(READERS) - {"index", "folders", "dicom"}))
def test_a_folder_of_something_else_is_refused_in_one_line(tmp_path, reader):
    with pytest.raises(ValueError, match=rf"^{tmp_path}: holds no [^\n]+$"):
        READERS[reader](tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="no folder"):
        READERS[reader](tmp_path / "file")


def test_a_list_is_read_in_both_codes_with_commas_line_breaks_and_short_rows(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufeffname ,note\r\n é ,"a, b\r\nc"\r\n\r\nshort\r\n'.encode())
    assert table(tmp_path / "a.csv", "name") == [{"name": "é", "note": "a, b\r\nc"}, {"name": "short", "note": ""}]
    (tmp_path / "b.csv").write_bytes("name\nlow 90’s\n".encode("cp1252"))
    assert table(tmp_path / "b.csv") == [{"name": "low 90’s"}]


@pytest.mark.parametrize(
    ("text", "years"),
    [("65", "65"), ("65.0", "65"), ("058Y", "58"), ("011M", "0"), ("030D", "0"), ("412", ""), ("50+", ""), ("", "")],
)
def test_ages_are_years_or_nothing(text, years):
    assert age(text) == years


def test_views_and_sexes_are_ours_or_nothing():
    texts = ("PA", "pa", "AP Supine", "AP semi erect", "L", "Lateral", "Axial", "")
    assert [view(text) for text in texts] == ["PA", "PA", "AP", "AP", "LATERAL", "LATERAL", "", ""]
    assert [sex(text) for text in ("M", "Male", "female", "w", "Unknown", "")] == ["M", "M", "F", "F", "", ""]
