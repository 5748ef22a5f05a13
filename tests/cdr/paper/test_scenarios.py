"""The names of scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdr.data import Harm
from cdr.paper.printed import SCENARIOS
from cdr.paper.scenarios import Scenario, parse, require_files
from cdr.paper.studies import STUDIES
from cdr.paper.study import default_data


def test_bare_names_stand_for_all_their_scenarios() -> None:
    assert [len(parse([name])) for name in ("amazon", "amazon5", "epinions", "g2")] == [7, 5, 3, 1]
    assert [s.in_paper for s in parse(["amazon"])] == list(SCENARIOS)
    assert all(s.in_paper is None for s in parse(["amazon5", "epinions", "g1"]))


def test_each_is_named_once_in_the_order_given() -> None:
    found = parse(["epinions:3:5", "epinions", "g1"])
    assert [str(s) for s in found] == ["epinions:3:5", "epinions:3:4", "epinions:others:4", "g1"]


def test_headings_are_short() -> None:
    joint = Scenario("amazon5", "Baby+Office_Products", "Toys_and_Games")
    assert joint.heading == "Baby + Office → Toys"
    assert Scenario("epinions", "others", "4").heading == "Epinions others → 4"
    assert Scenario("epinions", "1+2+3+5+6", "4").heading == "Epinions 5 domains → 4"
    assert Scenario("g1").heading == "G1"


def test_what_is_loaded(tmp_path: Path) -> None:
    source = Scenario("epinions", "3", "4").data(tmp_path)
    assert dict(source.options) == {"root": tmp_path, "source": "3", "target": "4"}
    assert Scenario("g1").data(tmp_path).seeded and not Scenario("g1").data(tmp_path).options
    (file,) = parse(["my:log.csv:books:toys"])
    assert (file.spec, file.source, file.target) == ("my:log.csv", "books", "toys")
    assert dict(file.data(None).options) == {"source": "books", "target": "toys"}


def test_a_harm_is_part_of_the_name_and_of_what_is_loaded(tmp_path: Path) -> None:
    harm = Harm("flip-items", 0.3, 2)
    one = Scenario("amazon", "Books", "Toys_and_Games", harm)
    assert str(one) == "amazon:Books:Toys_and_Games, flip-items 0.3 (seed 2)"
    assert one.heading == "Books → Toys, flip-items 0.3 (seed 2)"
    assert one.flagged and one.in_paper is None
    assert dict(one.data(tmp_path).options)["harm"] == harm
    assert Scenario("g1", harm=harm).data(None).seeded


@pytest.mark.parametrize(
    "name", ["g3", "recbole", "amazon5:Beauty", "amazon5:Beauty:", "ebay:a:b", "log.xlsx:a:b", ""]
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"--data {name}.*SPEC:SOURCE:TARGET"):
        parse([name])


def test_a_data_set_without_a_root_is_refused() -> None:
    with pytest.raises(ValueError, match="--root.*epinions"):
        Scenario("epinions", "3", "4").data(None)


def test_what_a_command_is_run_on_if_nothing_is_named(tmp_path: Path) -> None:
    assert default_data(STUDIES["table1"], None) == ("g1",)
    assert default_data(STUDIES["generated"], tmp_path) == ("g1", "g2")
    with pytest.raises(ValueError, match="--root .*amazon5"):
        default_data(STUDIES["table1"], tmp_path)
    (tmp_path / "epinions").mkdir()
    assert parse(default_data(STUDIES["table1"], tmp_path)) == parse(["epinions"])


@pytest.mark.parametrize("folder", ["", "amazon"])
def test_of_amazon_the_complete_scenarios_are_taken(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    for domain in ("Books", "Toys_and_Games", "CDs_and_Vinyl", "Electronics"):
        for name in (f"reviews_{domain}_5.json.gz", f"meta_{domain}.json"):
            (tmp_path / folder / name).touch()
    (tmp_path / folder / "meta_Electronics.json").unlink()
    for command, expected in (("table1", ["Books-CDs", "Books-Toys"]), ("table3", ["Books-CDs"])):
        assert [s.in_paper for s in parse(default_data(STUDIES[command], tmp_path))] == expected
    (tmp_path / folder / "meta_Books.json").unlink()
    # None is complete: all, for what is missing to be told.
    assert len(default_data(STUDIES["table1"], tmp_path)) == 7
    with pytest.raises(FileNotFoundError, match="meta_Books.json.gz"):
        require_files(parse(["amazon"]), tmp_path)


def test_the_papers_names_of_domains_do() -> None:
    (scenario,) = parse(["amazon:Books+CDs:Toys"])
    assert (scenario.source, scenario.target) == ("Books+CDs_and_Vinyl", "Toys_and_Games")
    assert parse(["amazon:Books:Toys"])[0].in_paper == "Books-Toys"


def test_atomic_files_are_named_by_their_domains(tmp_path: Path) -> None:
    (scenario,) = parse(["recbole:books:toys"])
    assert scenario.heading == "books → toys" and not scenario.dataset.published
    told = {"root": tmp_path, "source": "books", "target": "toys"}
    assert dict(scenario.data(tmp_path).options) == told
    with pytest.raises(ValueError, match="--root.*NAME.inter"):
        scenario.data(None)
