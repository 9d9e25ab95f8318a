"""The HTML report: one file that asks for nothing, says what is missing, and shows in a real browser."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import made
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from analysis import stats, study
from analysis.figures import style
from analysis.load import REFERENCE
from analysis.report import write_report
from bench.cells import Cell, GemmCell, LstmCell, TrainCell

ANALYSIS = Path(study.__file__).parent
Sweep = Callable[..., Path]
CHROMIUM = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1200,6000",
]  # fmt: skip
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """What a page holds: every element with its attributes, its words, and whether its elements nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.style = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            self.style += data
        else:
            self.words += " ".join(data.split()) + "\n" if data.strip() else ""

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def headings(self) -> list[str]:
        return [line for line in self.words.splitlines() if line in (*HEADINGS, OPS, LAYER, SPARSE)]


SPEED, COST, TRADEOFF, EPOCHS = (
    "Speed of the products", "What sparsity costs", "Accuracy against speed", "Training, epoch by epoch",
)  # fmt: skip
OPS, LAYER, SPARSE = "Products for training", "Speed of the LSTM layer", "Training on the sparse path"
HEADINGS = (SPEED, COST, TRADEOFF, EPOCHS)


def assert_self_contained(page: Page) -> None:
    """Every address is inside the file, and nothing else can ask for one."""
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        assert not {"srcset", "background", "poster", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        for address in (attributes[name] for name in ("src", "href") if name in attributes):
            assert address.startswith("data:") or (address[0] == "#" and address[1:] in ids), address[:80]
    assert "url(" not in page.style and "@import" not in page.style
    for image in page.all("img"):
        assert len(image["alt"]) > 30 and int(image["width"]) > 100 and int(image["height"]) > 100
        assert image["src"].startswith("data:image/png;base64,")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sweep with both tables, drawn as for a reader."""
    folder = tmp_path_factory.mktemp("whole")
    made.write(folder, "gemm", made.gemm_frame())
    made.write(folder, "train", made.train_frame())
    return write_report(folder)


@pytest.mark.examples
def test_the_report_asks_for_nothing(whole: Path) -> None:
    page = Page(whole)
    assert_self_contained(page)
    assert page.headings()[:4] == list(HEADINGS)  # in the contents
    assert page.headings()[4:] == list(HEADINGS)  # and as sections
    assert len(page.all("img")) == 2 + 1 + 1 + 3
    assert [path.name for path in whole.parent.glob(".*")] == []


def test_the_report_says_where_its_numbers_come_from(whole: Path) -> None:
    words = Page(whole).words
    for value in ("Test CPU", "0123abcd", "mkl", "2026-01-01", "12 of 18 product timings and 22 of 23 training runs"):
        assert value in words.replace("\n", " "), value


def test_every_failed_cell_is_listed_with_its_reason(whole: Path) -> None:
    page = Page(whole)
    listed = page.words[page.words.index("Every cell that did not end ok") :]
    assert "7 in all" in listed
    assert listed.count(f"\nunsupported\n{made.NO_SCIPY}\n") == 6
    assert listed.count(f"\ndiverged\n{made.DIVERGED}\n") == 1
    for block_size in (8, 16):
        for sparsity in (0.5, 0.8, 0.95):
            assert f"block_size {block_size}, target_sparsity {sparsity}" in listed


@pytest.mark.usefixtures("blank_pictures")
def test_products_alone_without_a_compiler(sweep: Sweep) -> None:
    frame = made.gemm_frame(unsupported={"native": made.NO_COMPILER}, backends=("torch_bsr",))
    page = Page(write_report(sweep(gemm=frame)))
    assert_self_contained(page)
    assert page.headings() == [SPEED] * 2
    assert "This sweep has no training runs: nothing is said about cost." in page.words
    assert "Accuracy: this sweep trained no network." in page.words
    assert f"native, our own, was not timed: unsupported ({made.NO_COMPILER})." in page.words
    assert page.words.count(f"\n{made.NO_COMPILER}\n") == 6


@pytest.mark.usefixtures("blank_pictures")
def test_training_runs_alone_with_one_seed(sweep: Sweep) -> None:
    page = Page(write_report(sweep(train=made.train_frame(seeds=1, variants=("dense", "gradual")))))
    assert_self_contained(page)
    assert page.headings() == [COST, EPOCHS] * 2
    assert "This sweep has no product timings: nothing is said about speed." in page.words
    assert "(one seed, so without an interval)" in page.words
    assert not re.search(r"\bnan\b", page.words)


@pytest.mark.usefixtures("blank_pictures")
def test_layers_and_sparse_training_have_sections(sweep: Sweep) -> None:
    page = Page(write_report(sweep(lstm=made.lstm_frame((256,)), train=made.sparse_frame(2))))
    assert_self_contained(page)
    assert page.headings() == [LAYER, COST, EPOCHS, SPARSE] * 2
    words = page.words.replace("\n", " ")
    assert "This sweep has no product timings: what is said about speed is of LSTM layers." in words
    assert "32 of 33 layer timings and 10 of 11 training runs ended ok" in words
    assert (
        "Layer (baseline torch_lstm): the fastest" in words
        and "block 16, ρ 0.8: dense training 40.0 s, masked 42.0 s, sparse 32.0 s" in words
    )
    for column in (
        "integral predicted",
        "integral measured",
        "Amdahl ceiling",
        "bytes finished",
        "seed noise",
        "theory there",
    ):
        assert f"\n{column}\n" in page.words, column
    assert page.words.count("\nlstm\n") == 1  # the layer that failed
    assert not re.search(r"\bnan\b", page.words)


@pytest.mark.usefixtures("blank_pictures")
def test_ops_are_shown_apart_and_together(sweep: Sweep) -> None:
    frames = [made.gemm_frame({}, ("native",), op=op) for op in ("dsd", "sdd")]
    page = Page(write_report(sweep(gemm=pd.concat(frames, ignore_index=True))))
    contents = [line for line in page.words.splitlines() if line.startswith((SPEED, OPS))]
    assert contents == [f"{SPEED} (op dsd)", f"{SPEED} (op sdd)", OPS] * 2


@pytest.mark.usefixtures("blank_pictures")
def test_all_cells_of_both_kinds_failed(sweep: Sweep) -> None:
    markup = '<script src="https://example.org/x.js">alert("&")</script>'  # what a reason says is text, never markup
    nothing = made.gemm_frame(unsupported={"native": markup, "scipy_bsr": made.NO_SCIPY}, backends=())
    page = Page(write_report(sweep(gemm=nothing, train=pd.DataFrame([made.diverged_row()]))))
    assert_self_contained(page)
    assert "0 of 12 product timings and 0 of 1 training runs ended ok" in page.words
    assert "no block-sparse product was timed" in page.words and "none of 1 training run finished" in page.words
    for reason, times in ((markup, 6), (made.NO_SCIPY, 6), (made.DIVERGED, 1)):
        assert page.words.count(f"\n{reason}\n") == times


@pytest.mark.usefixtures("blank_pictures")
def test_stored_matrices_have_a_section_for_weights_and_one_for_activations(sweep: Sweep) -> None:
    frame = pd.concat([made.storage_frame(), made.storage_frame(what="activation")], ignore_index=True)
    page = Page(write_report(sweep(storage=frame)))
    assert_self_contained(page)
    titles = ["Sparse storage (what activation)", "Sparse storage (what weight)"]
    assert [line for line in page.words.splitlines() if line.startswith("Sparse storage")] == 2 * titles
    words = page.words.replace("\n", " ")
    assert "This sweep has no product timings: what is said about speed is of stored matrices." in words
    assert "40 of 42 storage cells ended ok" in words and "Storage (what " in words
    assert words.count(made.NO_CSR) >= 2
    for column in ("smaller from", "by formula", "file smaller from", "faster from"):
        assert f"\n{column}\n" in page.words, column
    assert len(page.all("img")) == 2 and not re.search(r"\bnan\b", page.words)


def test_without_a_table_one_line_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"neither gemm\.parquet nor train\.parquet nor lstm\.parquet nor storage\.parquet; run the sweep first$",
    ):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on PATH")
@pytest.mark.examples
def test_a_browser_shows_the_pictures(whole: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    command = [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", whole.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert shot.is_file(), done.stderr[-2000:]
    pixels = matplotlib.image.imread(shot)[..., :3]
    assert pixels.shape[:2] == (6000, 1200)
    for part in np.array_split(pixels[:3600], 3):  # the findings, the products, the perplexities
        assert part.std() > 0.05, "blank"
    orange = np.abs(pixels - np.array(to_rgb(style.block_colour(8)))).max(axis=-1) < 0.06
    assert orange.sum() > 300, "no figure is painted: the line of block size 8 is nowhere to be seen"


def test_the_slides_table_has_the_speedups_of_products(whole: Path) -> None:
    """As in notebook 2: the report is given the products that were timed beside the runs."""
    words = Page(whole).words
    table = words[
        words.index("our measured product speedup") : words.index(f"\n{TRADEOFF}\n", words.index("our train ppl"))
    ]
    assert len(re.findall(r"^\d+\.\d\d× \[", table, re.MULTILINE)) == 2, table  # of the two pruned lines


MEASURE = """<script>onload = () => {
  const widths = [...document.querySelectorAll("table")].map(
    table => [table.tHead.innerText.trim(), table.scrollWidth, table.closest(".wide").clientWidth]);
  document.title = JSON.stringify(widths);
}</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on PATH")
@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.examples
def test_no_table_is_wider_than_the_page(sweep: Sweep, tmp_path: Path) -> None:
    """At 1300 pixels no column is behind a scrollbar.

    The page runs no script, so a copy without its policy is measured.
    """
    train = made.sparse_frame(3, lasso="proximal")
    path = write_report(sweep(gemm=made.gemm_frame(), lstm=made.lstm_frame((256,)), train=train))
    page = re.sub(r"<meta http-equiv=[^>]+>", "", path.read_text(encoding="utf-8")).replace("</body>", MEASURE)
    path.write_text(page, encoding="utf-8")
    window = [*CHROMIUM[:-1], "--window-size=1300,3000", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*window, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=240)
    title = re.search(r"<title>(\[.+?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    widths = json.loads(unescape(title[1]))
    assert len(widths) == 9 and [head for head, width, room in widths if width > room] == []


def test_the_page_has_the_accent_of_the_palette(whole: Path) -> None:
    assert f"--accent: {style.BLUE};" in Page(whole).style


def test_captions_and_alternative_texts_differ(whole: Path) -> None:
    images = Page(whole).all("img")
    captions = re.findall(r"<figcaption>(.+?)</figcaption>", whole.read_text(encoding="utf-8"), re.DOTALL)
    assert len({image["alt"] for image in images}) == len(images) == len(set(captions))


@pytest.mark.usefixtures("blank_pictures")
def test_a_part_without_a_result_is_one_sentence(sweep: Sweep) -> None:
    """On a machine without a GPU: no empty picture and no table of heads alone, of products, layers and runs."""
    gone = "no CUDA device was found"

    def failed(kind: Callable[..., Cell]) -> pd.DataFrame:
        return pd.DataFrame([made.row(kind(device="cuda"), "failed", gone)])

    cpu, other = made.gemm_frame({}, ("native",)), made.gemm_frame({}, ("native",), n=40)
    other = other.assign(status="failed", reason=gone)
    page = Page(write_report(sweep(
        gemm=pd.concat([cpu, other, failed(GemmCell)], ignore_index=True),
        lstm=pd.concat([made.lstm_frame((256,)), failed(LstmCell)], ignore_index=True),
        train=pd.concat([made.train_frame(1), failed(TrainCell)], ignore_index=True),
    )))  # fmt: skip
    for title, noun in ((SPEED, "product timings"), (LAYER, "layer timings"), (COST, "training runs")):
        said = f"None of 1 {noun} has a result here: 1 × failed: {gone}."
        assert re.search(rf"{title} \([^\n]*cuda\)\n{re.escape(said)}\n(?!Where|Every variant)", page.words), title
    assert f"W 512 × 128, n = 40: None of 6 product timings has a result here: 6 × failed: {gone}." in page.words
    assert not [image for image in page.all("img") if "n = 40" in image["alt"]]
    assert len([line for line in page.words.splitlines() if line.startswith(EPOCHS)]) == 2  # of the CPU alone


@pytest.mark.usefixtures("blank_pictures")
def test_figures_of_one_backend_are_of_one_that_was_timed(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for name in ("op_figure", "layer_figure", "layer_efficiency_figure"):
        monkeypatch.setattr(
            f"analysis.figures.products.{name}", lambda _, backend="native": drawn.append(backend) or Figure((2, 2))
        )
    products = pd.concat([made.gemm_frame({}, ("cuda",), op=op) for op in ("dsd", "sdd")], ignore_index=True)
    write_report(sweep(gemm=products, lstm=made.lstm_frame((256,), backend="cuda")))
    assert drawn == ["cuda"] * 3


INTERVALS = (
    ("compare", "median_interval"),
    ("studying.realised", "median_interval"),
    ("studying.realised", "integral_ratio"),
)


@pytest.mark.examples
@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("name", ["lstm", "wikitext2_best_small", "wikitext2_small", "all tables"])
def test_a_report_bootstraps_each_cell_once(
    name: str, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a timed cell its pairs; of a run on the sparse path its integral, its inference and that of its layers."""
    if name == "all tables":
        products = [made.gemm_frame({}, ("native",), op=op) for op in ("dsd", "sdd")]
        folder = sweep(gemm=pd.concat(products), lstm=made.lstm_frame((256,)), train=made.sparse_frame(2))
    else:
        folder = Path(shutil.copytree(REFERENCE / name, tmp_path / name))
    made_of = []
    for module, function in INTERVALS:
        draw = getattr(stats, function)
        monkeypatch.setattr(
            f"analysis.{module}.{function}", lambda *samples, draw=draw: made_of.append(samples) or draw(*samples)
        )
    write_report(folder)
    drawn, found = len(made_of), study.read(folder)
    timed = [frame for table, frame in found.tables.items() if table != "train"]
    expected = sum(int((frame["status"] == "ok").sum()) for frame in timed)
    runs = [part.rows.drop_duplicates("cell_id", keep="last") for part in found.parts("train")]
    sparse = pd.concat(runs) if runs else pd.DataFrame({"path": [], "status": []})
    expected += 3 * int(((sparse["path"] != "dense") & (sparse["status"] == "ok")).sum())
    assert drawn == expected > 0


def test_a_figure_or_a_table_computes_no_interval() -> None:
    """What `study.Part` has computed once is drawn, and said."""
    makers = {name for name in vars(stats) if name.endswith("_interval")} | {
        "integral_ratio",
        "compared",
        "difference",
        "level",
        "residual",
        "scatter",
    }
    for path in (*sorted(ANALYSIS.glob("figures/*.py")), ANALYSIS / "tables.py", ANALYSIS / "awd" / "tables.py"):
        used = {node.id for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Name)}
        assert not used & (makers | {"over_seeds"}), path


@pytest.mark.usefixtures("blank_pictures")
def test_a_report_of_characters_speaks_of_bits_alone(sweep: Sweep) -> None:
    found = study.read(sweep(gemm=made.gemm_frame(backends=("native",)), train=made.sparse_frame(2)))
    found.tables["train"] = found.tables["train"].assign(token="character", dataset="wikitext2_chars")
    text = write_report(found).read_text(encoding="utf-8").lower()
    assert "bits a character" in text
    assert re.findall(r".{0,40}perplexit.{0,40}", text) == []
