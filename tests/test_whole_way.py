"""From training to release and back, through the command line, on small pictures."""

from pathlib import Path

import pytest

from tests.makers import make_faces
from tests.whole_way import main


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_goes_the_whole_way_from_training_to_release_and_back(tmp_path: Path) -> None:
    faces = make_faces(tmp_path / "faces", train=24, val=12, test=12)
    way = main(tmp_path / "store", str(faces), trials=2)
    assert (way["promote"]["version"], way["promote another"]["version"]) == (1, 2)
    assert (way["rollback"]["left"], way["rollback"]["version"]) == (2, 1)
    assert way["predict"]["run_id"] == way["baseline"]["run_id"], "the champion is the run that was promoted"
    score = way["predict"]["pictures"][0]["score"]
    assert way["serve"]["score"] == pytest.approx(score, abs=1e-6), "served and predicted scores differ"
    assert way["serve"]["heat_map"].startswith("data:image/png;base64,")
    assert way["verify"]["holds"] is True
    assert any("not told apart" in word or "better" in word or "worse" in word for word in way["compare"]["verdicts"])
