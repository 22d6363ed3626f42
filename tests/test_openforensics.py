"""OpenForensics: from scenes (made here) to crops, masks and a manifest, whatever happens in between."""

import csv
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import PEAK_KIB
from PIL import Image, ImageDraw

from dftrack.data import openforensics
from dftrack.data.coco import read_annotation, read_index
from dftrack.data.crops import Square, mask_png, square_around
from dftrack.data.folder import read_folder
from dftrack.data.openforensics import Prepared, prepare
from dftrack.data.pictures import decode
from dftrack.errors import DataError, SettingError

NAMES = ("Train", "Val", "Test-Dev", "Test-Challenge")
Json = dict[str, Any]


def oval(left: float, top: float, width: float, height: float, corners: int = 40) -> list[float]:
    """An ellipse in the box as COCO's flat x, y, x, y, ..."""
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    points = [left + width / 2 * (1 + np.cos(turn)), top + height / 2 * (1 + np.sin(turn))]
    return [round(float(number), 2) for number in np.stack(points, 1).ravel()]


def make_split(src: Path, name: str, scenes: int, *, faces: bool = True, folder: str = "Images") -> Json:
    """Scenes of 200 x 150 pixels, each with one real and one fake face: a dark oval and a bright one on a wash."""
    draw = random.Random(name)
    images: list[Json] = []
    annotations: list[Json] = []
    (src / folder / name).mkdir(parents=True)
    for number in range(1, scenes + 1):
        wash = np.linspace(60, 180, 200)[None, :, None] + np.linspace(0, 40, 150)[:, None, None] + np.arange(3) * 5
        picture = Image.fromarray(wash.astype(np.uint8))
        pen = ImageDraw.Draw(picture)
        file = f"{draw.randrange(16**8):08x}.jpg"
        images.append({"id": number, "file_name": f"Images/{name}/{file}", "width": 200, "height": 150})
        for category, x, shade in ((0, 10, 20), (1, 110, 240)) if faces or number == 300 else ():
            box = [x + draw.randrange(20), 20 + draw.randrange(20), 40 + draw.randrange(20), 60 + draw.randrange(20)]
            outline = oval(*box)
            pen.ellipse((box[0], box[1], box[0] + box[2] - 1, box[1] + box[3] - 1), fill=(shade, shade, shade))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": box,
                    "segmentation": [outline],
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        picture.save(src / folder / name / file, quality=95)
    draw.shuffle(annotations)  # nothing promises that a scene's annotations stand together
    categories = [{"id": 0, "name": "Real"}, {"id": 1, "name": "Fake"}]
    table = {"info": {"year": 2021}, "categories": categories, "images": images, "annotations": annotations}
    write_json(src, name, table)
    return table


def write_json(src: Path, name: str, table: object) -> None:
    (src / f"{name}_poly.json").write_text(json.dumps(table))


def contents(out: Path) -> dict[str, str]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "manifest.csv", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    for name, scenes in zip(NAMES, (6, 3, 3, 2), strict=True):
        make_split(folder, name, scenes)
    return folder


def test_every_face_becomes_a_crop_with_its_mask_class_split_and_scene(src: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = prepare(src, tmp_path / "out", size=64, progress=lambda done, total: seen.append((done, total)))

    assert made.counts == {
        "train": {"real": 6, "fake": 6},
        "val": {"real": 3, "fake": 3},
        "test-dev": {"real": 3, "fake": 3},
        "test-challenge": {"real": 2, "fake": 2},
    }
    assert made.scenes == {"train": 6, "val": 3, "test-dev": 3, "test-challenge": 2}
    assert (made.skipped, made.unmasked, made.absent, made.already_done) == ((), (), (), 0)
    assert seen == [(done, 14) for done in range(15)], "progress must count every scene once"

    listing = read_folder(tmp_path / "out")
    assert len(listing.pictures) == 28
    splits_of: dict[str, set[str]] = {}
    for picture in listing.pictures:
        splits_of.setdefault(picture.group, set()).add(picture.split)
        pixels = decode(picture.path).astype(float)
        assert pixels.shape == (64, 64, 3)
        assert picture.mask is not None
        mask = np.asarray(Image.open(picture.mask).convert("L")) > 0
        face = pixels[mask].mean()
        assert (face > 200) if picture.label == 1 else (face < 60), f"{picture.name}: the face shows {face:.0f}"
        assert 60 < pixels[~mask].mean() < 225, "the margin shows the surroundings"
    assert len(splits_of) == 14, "one group for each scene, though ids repeat from split to split"
    assert all(len(splits) == 1 for splits in splits_of.values())


def test_a_second_call_reads_no_scene_again_and_changes_no_byte(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(src, tmp_path / "out", size=32)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(openforensics, "decode", lambda path: pytest.fail(f"{path} was read again"))
    made = prepare(src, tmp_path / "out", size=32)
    assert made.already_done == 14
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("layout", ["Train", "Train_part_1/Train", "Images/Train", "beside"])
def test_the_scenes_are_found_however_the_archives_were_unpacked(tmp_path: Path, layout: str) -> None:
    src = tmp_path / "src"
    make_split(src, "Train", 2, folder="there")
    (src / "Images").mkdir()
    target = src if layout == "beside" else src / layout
    target.mkdir(parents=True, exist_ok=True)
    for file in (src / "there" / "Train").iterdir():
        file.rename(target / file.name)
    (src / "there" / "Train").rmdir()
    assert prepare(src, tmp_path / "out", size=16).counts["train"] == {"real": 2, "fake": 2}


def test_the_annotation_file_may_lie_one_folder_below(tmp_path: Path) -> None:
    src = tmp_path / "src"
    make_split(src, "Val", 2)
    (src / "Json").mkdir()
    (src / "Val_poly.json").rename(src / "Json" / "Val_poly.json")
    made = prepare(src, tmp_path / "out", size=16)
    assert made.counts == {"val": {"real": 2, "fake": 2}}
    assert made.absent == ("train", "test-dev", "test-challenge")


def test_splits_that_come_later_are_added_without_doing_the_first_again(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    make_split(src, "Train", 3)
    prepare(src, out, size=16)
    make_split(src, "Val", 2)
    made = prepare(src, out, size=16)
    assert made.already_done == 3
    assert made.counts["val"] == {"real": 2, "fake": 2}


KILLED = """
import sys, time
from pathlib import Path
from dftrack.data import crops, openforensics
slow = openforensics.crop_jpeg
def crop(*args):
    time.sleep(0.003)
    return slow(*args)
openforensics.crop_jpeg = crop
openforensics.prepare(Path(sys.argv[1]), Path(sys.argv[2]), size=24, workers=2,
                      progress=lambda done, total: print(done, flush=True))
"""


def test_kill_9_at_any_moment_and_continuing_ends_with_the_same_bytes(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    make_split(src, "Train", 30)
    make_split(src, "Val", 10)
    prepare(src, tmp_path / "undisturbed", size=24)
    draw = random.Random(7)
    kills = 0
    for _ in range(40):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(src), str(out)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        target = int(child.stdout.readline() or 40) + draw.randrange(5, 12)
        for line in child.stdout:
            if int(line) >= target:
                time.sleep(draw.random() * 0.01)
                child.send_signal(signal.SIGKILL)
                break
        child.stdout.close()
        kills += child.wait() == -signal.SIGKILL
        if child.returncode == 0:
            break
        assert not (out / "manifest.csv").exists(), "the manifest comes last"
    assert kills >= 3, f"only {kills} kills hit: the test proves nothing"
    assert child.returncode == 0, f"not finished after {kills} kills: it does not continue where it was"
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_ctrl_c_stops_and_the_next_call_goes_on_where_it_was(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    before = set(threading.enumerate())  # another test may have left a server's
    with pytest.raises(KeyboardInterrupt):
        prepare(src, out, size=24, progress=interrupt)
    assert set(threading.enumerate()) <= before, "threads are still at work"
    made = prepare(src, out, size=24)
    assert made.already_done == 5
    prepare(src, tmp_path / "undisturbed", size=24)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_torn_journal_or_a_lost_crop_is_done_again(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(src, out, size=24)
    whole = contents(out)
    (out / "manifest.csv").unlink()
    journal = out / ".prepare" / "train.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    next((out / "val" / "fake").iterdir()).unlink()
    cut_short = next((out / "masks" / "test-dev").iterdir())
    cut_short.write_bytes(b"")
    half_written = out / "train" / "real" / ".ab.jpg.12-cd.tmp"
    half_written.write_bytes(b"half")
    assert prepare(src, out, size=24).already_done == 14 - 3
    assert contents(out) == whole


def test_other_settings_are_refused_in_a_folder_begun_with_these(src: Path, tmp_path: Path) -> None:
    prepare(src, tmp_path / "out", size=24)
    with pytest.raises(DataError, match="begun with other settings"):
        prepare(src, tmp_path / "out", size=32)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not a folder that this command has made"):
        prepare(src, tmp_path / "mine")
    for wrong in ({"size": 4}, {"margin": -0.1}, {"workers": 0}):
        with pytest.raises(SettingError):
            prepare(src, tmp_path / "new", **wrong)  # type: ignore[arg-type]


def broken(src: Path, *changes: tuple[int, Json]) -> None:
    """Change some annotations of the split Train."""
    table = json.loads((src / "Train_poly.json").read_text())
    for number, change in changes:
        table["annotations"][number].update(change)
    write_json(src, "Train", table)


def reasons(made: Prepared) -> dict[str, int]:
    return {part.reason: part.count for part in made.skipped}


def test_faces_with_faults_are_left_out_and_named(src: Path, tmp_path: Path) -> None:
    broken(
        src,
        (0, {"bbox": [20, 20, 0, 30]}),
        (1, {"bbox": [500, 20, 30, 30]}),
        (2, {"category_id": 7}),
        (3, {"bbox": [float("nan"), 1, 2, 3]}),
        (4, {"bbox": None}),
        (5, {"image_id": 4711}),
        (6, {"category_id": None}),
        (7, {"bbox": [10**400, 1, 2, 3]}),
    )
    made = prepare(src, tmp_path / "out", size=24)
    assert reasons(made) == {
        "face with a box of no size": 1,
        "face with a box outside the scene": 1,
        "face with category 7": 1,
        "face with category None": 1,
        "face with no box of four numbers": 3,
        "annotation of a scene that the file does not list": 1,
    }
    assert sum(made.counts["train"].values()) == 12 - 8
    assert all(part.examples for part in made.skipped)


def test_faces_without_a_usable_polygon_are_kept_without_a_mask(src: Path, tmp_path: Path) -> None:
    broken(
        src,
        (0, {"segmentation": {"counts": [3, 5], "size": [150, 200]}}),
        (1, {"segmentation": []}),
        (2, {"segmentation": [[1, 2, 3]]}),
        (3, {"segmentation": [[1, 2, 3, 4, 5, "x"]]}),
        (4, {"segmentation": 5}),
    )
    made = prepare(src, tmp_path / "out", size=24)
    assert {part.reason: part.count for part in made.unmasked} == {
        "broken polygon": 3,
        "no polygon": 1,
        "mask is run-length encoded, only polygons are read": 1,
    }
    assert made.counts["train"] == {"real": 6, "fake": 6}
    assert sum(not row["mask"] for row in rows(tmp_path / "out")) == 5
    assert sum(picture.mask is None for picture in read_folder(tmp_path / "out").pictures) == 5


def test_a_few_bad_scenes_are_named_and_tried_again_next_time(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    make_split(src, "Train", 300, faces=False)
    scenes = sorted((src / "Images" / "Train").iterdir())
    whole = [scene.read_bytes() for scene in scenes[:3]]
    scenes[0].unlink()
    scenes[1].write_bytes(whole[1][:1000])
    Image.new("RGB", (99, 77)).save(scenes[2])
    made = prepare(src, out, size=16)
    assert made.scenes == {"train": 297}
    assert sorted(example for part in made.skipped for example in part.examples) == [
        f"Images/Train/{scene.name}" for scene in scenes[:3]
    ]
    assert any("not the 200 x 150 of its annotations" in part.reason for part in made.skipped)
    for scene, content in zip(scenes, whole, strict=False):
        scene.write_bytes(content)
    made = prepare(src, out, size=16)
    assert (made.already_done, made.scenes, made.skipped) == (297, {"train": 300}, ())
    prepare(src, tmp_path / "undisturbed", size=16)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_more_than_one_percent_of_bad_scenes_is_an_error_that_names_them(src: Path, tmp_path: Path) -> None:
    scene = next((src / "Images" / "Val").iterdir())
    content = scene.read_bytes()
    scene.unlink()
    with pytest.raises(DataError, match=f"1 of the 3 scenes of val cannot be used.*{scene.name}"):
        prepare(src, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.jpg")), "missing scenes must be known before any work is done"
    scene.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        prepare(src, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.csv").exists()
    scene.write_bytes(content)
    assert prepare(src, tmp_path / "out").scenes["val"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a whole COCO file"),
        ("[]", "{ expected at byte 0"),
        ("{}", "no list of images and annotations"),
        ('{"images": [], "annotations": 5}', "no list of annotations"),
        ('{"images": [1], "annotations": []}', "is not an object"),
        ('{"images": [], "annotations": [{"id": 1}', "found the end"),
        ('{"images": [], "annotations": [{"id": 1]}', "at byte 39"),
        ('{"images": [], "annotations": []} trailing', "more text follows"),
        ('{"images": [], "annotations": [' + "[" * 100_000, "not a whole COCO file"),
    ],
)
def test_a_broken_annotation_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "Train_poly.json").write_text(text)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, tmp_path / "out")
    assert message in caught.value.message, caught.value.message


def test_a_source_without_annotations_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no annotation file"):
        prepare(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="no folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_category_names_decide_and_other_categories_are_refused(tmp_path: Path) -> None:
    table = make_split(tmp_path / "src", "Train", 2)
    table["categories"] = [{"id": 0, "name": "Fake"}, {"id": 1, "name": "Real"}]
    write_json(tmp_path / "src", "Train", table)
    prepare(tmp_path / "src", tmp_path / "out", size=32)
    for picture in read_folder(tmp_path / "out").pictures:
        bright = decode(picture.path)[16, 16].mean() > 128
        assert bright == (picture.label == 0), "the file says that 0 is Fake"
    table["categories"] = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    write_json(tmp_path / "src", "Train", table)
    with pytest.raises(DataError, match="not Real and Fake"):
        prepare(tmp_path / "src", tmp_path / "other")


def test_a_file_name_that_climbs_out_of_the_source_is_not_followed(src: Path, tmp_path: Path) -> None:
    table = json.loads((src / "Train_poly.json").read_text())
    scene = src / table["images"][0]["file_name"]
    scene.rename(tmp_path / scene.name)
    table["images"][0]["file_name"] = f"../{scene.name}"
    write_json(src, "Train", table)
    with pytest.raises(DataError, match="scene is missing"):
        prepare(src, tmp_path / "out")


def test_scenes_that_share_a_name_keep_their_own_crops(tmp_path: Path) -> None:
    table = make_split(tmp_path / "src", "Train", 2)
    first, second = (tmp_path / "src" / image["file_name"] for image in table["images"])
    second.rename(first.with_suffix(".jpeg"))
    table["images"][1]["file_name"] = f"Images/Train/{first.stem}.jpeg"
    write_json(tmp_path / "src", "Train", table)
    prepare(tmp_path / "src", tmp_path / "out", size=16)
    assert len({row["path"] for row in rows(tmp_path / "out")}) == 4
    assert len({row["group"] for row in rows(tmp_path / "out")}) == 2


def test_the_reader_finds_the_same_as_json_whatever_the_window(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = json.loads((src / "Train_poly.json").read_text())
    table = {"licenses": [1, 2.5, -3e5, 'é\\"[', None], **table, "last": 12345}
    table["images"][0]["file_name"] = "Images/Train/Grüße 😀.jpg"
    for ascii_only, indent, mark in ((True, None, b""), (False, 1, b"\xef\xbb\xbf")):
        path = tmp_path / "x.json"
        path.write_bytes(mark + json.dumps(table, ensure_ascii=ascii_only, indent=indent).encode())
        for chunk in (1, 7, 1000, 1 << 20):
            monkeypatch.setattr("dftrack.data.coco.CHUNK", chunk)
            index = read_index(path)
            assert index.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
            assert [scene.file_name for scene in index.scenes] == [image["file_name"] for image in table["images"]]
            handle = os.open(path, os.O_RDONLY)
            for scene in index.scenes:
                wanted = [item for item in table["annotations"] if item["image_id"] == scene.id]
                got = [read_annotation(handle, span) for span in scene.spans]
                assert [list(face.box) for face in got] == [item["bbox"] for item in wanted]
                assert [np.ravel(face.polygons).tolist() for face in got] == [i["segmentation"][0] for i in wanted]
            os.close(handle)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_reading_a_big_annotation_file_takes_little_memory(tmp_path: Path) -> None:
    polygon = ", ".join(str(number / 7) for number in range(3000))
    with open(tmp_path / "Train_poly.json", "w") as handle:
        handle.write('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [')
        for number in range(600):
            item = f'{{"id": {number}, "image_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[{polygon}]]}}'
            handle.write((", " if number else "") + item)
        handle.write("]}")
    size = (tmp_path / "Train_poly.json").stat().st_size
    code = (
        "import sys; from pathlib import Path; from dftrack.data.coco import read_index\n"
        f"before = {PEAK_KIB}\n"
        "assert len(read_index(Path(sys.argv[1])).scenes[0].spans) == 600\n"
        f"print({PEAK_KIB} - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "Train_poly.json")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
    assert size > 25e6
    assert 0 < grown < 12e6, f"{grown / 1e6:.0f} MB for a file of {size / 1e6:.0f} MB"


@pytest.mark.parametrize(
    ("box", "scene", "margin", "wanted"),
    [
        ((40, 40, 20, 10), (100, 100), 0.0, Square(40, 35, 20)),
        ((40, 40, 20, 20), (100, 100), 0.5, Square(30, 30, 40)),
        ((0, 0, 20, 20), (100, 100), 0.5, Square(0, 0, 40)),  # moved inwards, not cut
        ((90, 90, 20, 20), (100, 100), 0.5, Square(80, 80, 20)),  # the part inside the scene counts
        ((10, 10, 60, 60), (100, 80), 0.5, Square(0, 0, 80)),  # less margin where there is no room
        ((10, 0, 20, 90), (40, 90), 0.3, Square(-25, 0, 90)),  # a face taller than the scene is wide overhangs
    ],
)
def test_the_square_stays_inside_the_scene_where_it_can(
    box: tuple[float, float, float, float], scene: tuple[int, int], margin: float, wanted: Square
) -> None:
    assert square_around(box, scene, margin) == wanted


def test_any_square_covers_its_box_and_leaves_the_scene_only_if_it_must() -> None:
    draw = random.Random(3)
    for _ in range(2000):
        width, height = draw.randrange(1, 300), draw.randrange(1, 300)
        box = (draw.uniform(-50, 300), draw.uniform(-50, 300), draw.uniform(0.1, 300), draw.uniform(0.1, 300))
        square = square_around(box, (width, height), draw.choice([0, 0.3, 1]))
        left, top = max(box[0], 0), max(box[1], 0)
        right, bottom = min(box[0] + box[2], width), min(box[1] + box[3], height)
        if right - left < 1 or bottom - top < 1:
            assert square is None
            continue
        assert square is not None
        case = f"{box} in {width} x {height}: {square}"
        assert square.left <= left + 1 and square.left + square.side >= right - 1, case
        assert square.top <= top + 1 and square.top + square.side >= bottom - 1, case
        if square.side <= min(width, height):
            assert 0 <= square.left <= width - square.side and 0 <= square.top <= height - square.side, case


def test_masks_agree_with_another_library_on_ovals_stars_and_several_parts() -> None:
    turn = np.arange(5) * 4 * np.pi / 5
    star = np.stack([50 + 40 * np.sin(turn), 50 - 40 * np.cos(turn)], 1)  # crosses itself: its middle is outside
    for parts in ([oval(20.3, 10.7, 50, 70)], [star.ravel().tolist()], [oval(5, 5, 30, 80), oval(50, 40, 45, 30)]):
        square, size = Square(-3, 4, 96), 224
        polygons = [[(x, y) for x, y in np.reshape(part, (-1, 2))] for part in parts]
        mask = np.asarray(Image.open(io.BytesIO(mask_png(polygons, square, size))).convert("L")) > 0
        centres = (np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2) + 0.5) * 96 / size
        crossings = [
            even_odd(np.reshape(part, (-1, 2)), centres + np.array([square.left, square.top])) for part in parts
        ]
        wanted = np.any(crossings, axis=0).reshape(size, size)
        overlap = (mask & wanted).sum() / (mask | wanted).sum()
        assert overlap > 0.97, f"masks overlap by {overlap:.3f} only"


def even_odd(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points lie inside by the even-odd rule: an odd number of edges crosses the ray to the right."""
    inside = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        spans = (y0 > points[:, 1]) != (y1 > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= spans & (points[:, 0] < (x1 - x0) * (points[:, 1] - y0) / (y1 - y0) + x0)
    return inside
