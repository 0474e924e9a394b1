"""Tests of the page: one file that opens offline, shows what the data say, and treats odd text as text."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs_support import tiny_config

from cocot import tasks
from cocot.cli import main
from cocot.errors import RunError
from cocot.experiments.html_report import write_page
from cocot.experiments.tables import SIDE_BY_SIDE, write_table
from cocot.interpret.search_tree import SearchTree
from cocot.tasks.graphs import depths, heights
from cocot.training.run import train

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ODD = '<script>alert("no")</script> "quotes" & \'marks\' <!-- Привет --> ' + "x" * 10_000
NODE_LABELS = ("problem", "node", "depth", "height_shortest", "height_longest")
MOST_BYTES = 3_000_000


def made_search() -> SearchTree:
    """Three problems of known values, one of them with odd texts."""
    problems = tasks.get("prosqa").generate(3, seed=0, mode="balanced", rendering="symbolic", layers=2, width=2)
    problems[1] = replace(problems[1], question=ODD, answer=ODD)
    sizes = [len(problem.graph.symbols) for problem in problems if problem.graph]
    graphs = [problem.graph for problem in problems if problem.graph]
    total = sum(sizes)
    values = np.linspace(0, 1, 3 * total, dtype=np.float32).reshape(3, total)
    measures: list[Any] = [
        np.array([value for graph in graphs for value in measure(graph)], dtype=np.int32)
        for measure in (depths, lambda graph: heights(graph, min), lambda graph: heights(graph, max))
    ]
    return SearchTree(
        values,
        np.repeat(np.arange(3, dtype=np.int32), sizes),
        np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        *measures,
        problems,
        [[ODD[:60] + f"### {problem.graph.symbols[k]}" for problem in problems if problem.graph] for k in range(3)],
        np.array([[True, False, True]] * 3),
        np.ones((3, 2, 4), np.float32),
        [[[";"], [";"]]] * 3,
        np.ones((3, 2, 1), np.float32),
        1.0,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run that was probed; read it, do not change it."""
    folder = tmp_path_factory.mktemp("page") / "run"
    train(tiny_config(data={"num_train": 8}), folder)
    made_search().write(folder / "search")
    return folder


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that run."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page([run], file)
    return file


def data_of(page: Path) -> Any:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_is_one_small_file(page: Path) -> None:
    """At most 3 MB; nothing in it is loaded from elsewhere."""
    text = page.read_text()
    assert len(text.encode()) < MOST_BYTES
    text = re.sub(r"(<script[^>]*>).*?</script>", r"\1", text, flags=re.DOTALL)  # Vega's own texts are no requests
    assert not re.search(r"""<(?:script|img|iframe)[^>]*\ssrc=|<link\b|@import|url\(["']?http""", text)


def test_the_page_holds_the_data(run: Path, page: Path) -> None:
    """Every value of every node, the graph, the texts: as in the search; and a chart for each figure."""
    search, data = SearchTree.read(run / "search"), data_of(page)
    for index, tree in enumerate(data["searches"]["search0"]):
        problem = search.problems[index]
        assert problem.graph
        assert tree["names"] == list(problem.graph.symbols)
        assert [tuple(edge) for edge in tree["edges"]] == list(problem.graph.edges)
        assert np.allclose(tree["values"], search.values[:, search.problem == index], atol=5e-5)
        assert tree["question"] == problem.question
        chosen = [text.rpartition("###")[2].split() for text in tree["outputs"]]
        assert tree["chosen"] == [tree["names"].index(words[0]) if words else None for words in chosen]
        assert tree["outputs"] == [texts[index] for texts in search.outputs]
        assert len(tree["way"]) == len(problem.steps)
        assert all(tuple(edge) in problem.graph.edges for edge in tree["way"])
        places = {tuple(place) for place in tree["places"]}
        assert len(places) == len(problem.graph.symbols), "two nodes on one place"
    assert len(data["specs"]) == page.read_text().count("data-spec=")
    assert all(spec["description"] for spec in data["specs"].values())


def test_odd_text_ends_no_script(page: Path) -> None:
    """Neither a tag nor a comment in a problem's text stands in the file as such."""
    text = page.read_text()
    assert "<script>alert" not in text
    assert "<!-- Привет" not in text
    assert text.count("</script>") == 3


def test_runs_of_one_name_in_two_folders(run: Path, tmp_path: Path) -> None:
    """Both are on the page, by folder; what a killed call left in a hidden folder is not."""
    for name in ("first", "second", "second/.miniatures-1"):
        shutil.copytree(run, tmp_path / name / "mine")
    write_page([tmp_path / "first", tmp_path / "second"], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    found = re.findall("<h2>The search inside (.*?)</h2>", text)
    assert found == [f"{tmp_path}/first/mine", f"{tmp_path}/second/mine"]


@pytest.mark.parametrize(("names", "heads"), [(("a", "b"), ("a", "b")), (("a/x", "b/x"), ("{0}/a/x", "{0}/b/x"))])
def test_studies_stand_side_by_side(run: Path, tmp_path: Path, names: tuple[str, ...], heads: tuple[str, ...]) -> None:
    """The page of several studies begins with the accuracies of all, by folder; that of one has no such table."""
    summary = {"accuracy": 0.5, "low": 0.25, "high": 0.75, "tokens": 4.0, "seconds_per_question": 0.1, "problems": 8}
    rows = [{"values": {"method": name}, "tests": {"test": summary}} for name in ("cot", "coconut")]
    about = {"versions": {"cocot": "1", "torch": "2"}, "commit": "", "platform": ""}
    table = {"note": "", "rows": rows, "ablations": [], "tests": {}, "environment": about}
    for name in names:
        shutil.copytree(run, tmp_path / name / "cot")
        write_table(table, tmp_path / name)
    write_page([tmp_path / name for name in names], tmp_path / "all.html")
    text = (tmp_path / "all.html").read_text()
    assert SIDE_BY_SIDE in text
    found = re.findall(r"<th scope=.col.>(.*?)</th>", text)[:4]
    assert found == ["method", *(head.format(tmp_path) for head in heads), "mean rank"]
    write_page([tmp_path / names[0]], tmp_path / "one.html")
    assert SIDE_BY_SIDE not in (tmp_path / "one.html").read_text()


def test_a_search_alone(run: Path, tmp_path: Path) -> None:
    """What `cocot probe --out` wrote makes a page by itself, and stands beside others of its name, and beside a run."""
    made_search().write(tmp_path / "mine")
    assert main(["report", str(tmp_path / "mine")]) == 0
    text = (tmp_path / "mine" / "report.html").read_text()
    assert re.findall("<h2>The search inside (.*?)</h2>", text) == ["mine"]
    assert "is not finished" not in text
    shutil.copytree(tmp_path / "mine", tmp_path / "other" / "mine")
    write_page([run, tmp_path / "mine", tmp_path / "other" / "mine"], tmp_path / "all.html")
    found = re.findall("<h2>The search inside (.*?)</h2>", (tmp_path / "all.html").read_text())
    assert found == [str(run), f"{tmp_path}/mine", f"{tmp_path}/other/mine"]


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is not finished and was not probed still gives a page; a folder without runs gives an error."""
    config = tiny_config(data={"num_train": 8})
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    assert main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"page: {tmp_path}/run/report.html\n"
    text = (tmp_path / "run" / "report.html").read_text()
    assert "run is not finished" in text
    assert "`cocot probe RUN`" in text
    with pytest.raises(RunError, match="holds no run; give the folder of `cocot train`"):
        write_page([tmp_path / "nothing"], tmp_path / "x.html")


def test_problems_without_a_graph(run: Path, tmp_path: Path) -> None:
    """A probe of them gives texts and tables; the figures about nodes are left out, with a sentence."""
    shutil.copytree(run, tmp_path / "run")
    whole = made_search()
    search = replace(
        whole,
        problems=[replace(problem, graph=None) for problem in whole.problems],
        **{name: getattr(whole, name)[:0] for name in NODE_LABELS},
        values=whole.values[:, :0],
    )
    search.write(tmp_path / "run" / "search")
    write_page([tmp_path / "run"], tmp_path / "report.html")
    data = data_of(tmp_path / "report.html")
    assert [tree["outputs"] for tree in data["searches"]["search0"]] == [
        [texts[index] for texts in search.outputs] for index in range(3)
    ]
    assert "names" not in data["searches"]["search0"][0]
    assert len(data["specs"]) == 2  # the training curves and the answers
    assert "have no graph" in (tmp_path / "report.html").read_text()


def test_a_model_without_thoughts(run: Path, tmp_path: Path) -> None:
    """Its tree and its answers are there; the figures about thoughts are left out, with a sentence."""
    shutil.copytree(run, tmp_path / "run")
    whole = made_search()
    search = replace(
        whole,
        values=whole.values[:1],
        outputs=whole.outputs[:1],
        correct=whole.correct[:1],
        thoughts=np.zeros((3, 0, 0), np.float32),
        nearest=[[]] * 3,
        nearest_values=np.zeros((3, 0, 1), np.float32),
    )
    search.write(tmp_path / "run" / "search")
    write_page([tmp_path / "run"], tmp_path / "report.html")
    data = data_of(tmp_path / "report.html")
    assert len(data["searches"]["search0"][0]["values"]) == 1
    assert len(data["specs"]) == 3  # training, answers, categories
    assert "was probed without thoughts" in (tmp_path / "report.html").read_text()


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")
def test_the_page_in_a_browser(run: Path, page: Path) -> None:
    """No error and no request; the slider, by keyboard, shows the values of the data; odd text is shown as text."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    search = SearchTree.read(run / "search")
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as browser:
        browser.get(page.as_uri())

        def find(selector: str) -> Any:
            return browser.find_element("css selector", selector)

        def shown() -> list[float]:
            return [float(text.text) for text in browser.find_elements("css selector", "svg.tree text.number")]

        assert len(browser.find_elements("css selector", ".chart svg")) == len(data_of(page)["specs"])
        slider = find("input.thoughts")
        for k in range(3):
            if k:
                slider.send_keys("\ue014")  # the right arrow
            assert find("output.count").text == str(k)
            assert np.allclose(shown(), search.values[k, search.problem == 0], atol=5.1e-3)
            change = search.values[1, 0] - search.values[0, 0]  # the same for all nodes, and up
            changes = [text.text for text in browser.find_elements("css selector", "svg.tree .change.up")]
            assert changes == [f"▲ {change:.2f}"] * (len(shown()) if k else 0)
            assert find(".output").text == search.outputs[k][0]
            assert find(".chosen .name").text == search.outputs[k][0].rpartition("### ")[2]
            assert find(".nearest").text == (f"Thought {k}, read through the head: “;” 1.00" if k else "")
        find("select.problem").send_keys("\ue015")  # the down arrow
        assert find(".question").text == ODD
        assert np.allclose(shown(), search.values[2, search.problem == 1], atol=5.1e-3)
        assert find(".verdict").text == "wrong"
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert [entry["message"] for entry in browser.get_log("browser")] == []
        events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        assert [url for url in urls if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
