"""The weights in a browser's storage, in a real Chromium: damaged, broken off and gone on with, not offered, measured.

The server and SmolLM2 are real, on one thread; what a disk or a connection does to the file is done by the test.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from rag.models.weights import CATALOGUE
from rag.serve.ondevice.shelf import DEFAULT, file_of

from .test_ondevice import QUESTION, REFERENCE, Serving, Visit, column, complaint, serving, visiting

SMALL = CATALOGUE[DEFAULT]
FILE = file_of(SMALL)
FOLDER = "(await (await navigator.storage.getDirectory()).getDirectoryHandle('smallfirst-weights', {create: true}))"
READY = ("data-model", "ready")
TIMES = "() => localStorage['smallfirst-ondevice-times']"
DAMAGED = "The model file is damaged: its SHA-256 is not its publisher’s. It was thrown away; fetch it again."
# Bytes of the first answer after which the connection breaks.
BREAKS_AT = 40_000_000
BREAK = f"""
const fetched = window.fetch;
let broken = false;
window.fetch = async (address, options) => {{
  const answer = await fetched(address, options);
  if (broken || !String(address).endsWith(".gguf")) return answer;
  broken = true;
  let left = {BREAKS_AT};
  const cut = new TransformStream({{
    transform(chunk, through) {{
      through.enqueue(chunk.subarray(0, left));
      left -= chunk.length;
      if (left <= 0) through.error(new TypeError("network error"));
    }},
  }});
  return new Response(answer.body.pipeThrough(cut), answer);
}};
"""


@pytest.fixture(scope="module")
def server(browser: Browser, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("weights") / "serve.log") as one:
        yield one


@pytest.fixture
def visit(browser: Browser, server: Serving) -> Iterator[Visit]:
    with visiting(browser, server) as visit:
        yield visit


def started(visit: Visit) -> Page:
    page = visit.open()
    page.locator("#start").click()
    expect(page.locator("body")).to_have_attribute(*READY)
    return page


def overwrite(page: Page, *places: tuple[int, int]) -> None:
    """Other bytes into the stored file, from here to there; the page is closed."""
    page.evaluate(
        f"""async ([name, places]) => {{
          const handle = await {FOLDER}.getFileHandle(name);
          const writable = await handle.createWritable({{keepExistingData: true}});
          for (const [from, to] of places) {{
            const noise = crypto.getRandomValues(new Uint8Array(to - from));
            await writable.write({{type: "write", position: from, data: noise}});
          }}
          await writable.close();
        }}""",
        [FILE, [list(place) for place in places]],
    )
    page.close()


def stored(page: Page) -> dict[str, int]:
    """Files in the storage, and their sizes."""
    found: dict[str, int] = page.evaluate(
        f"""async () => {{
          const found = {{}};
          for await (const [name, handle] of {FOLDER}.entries()) found[name] = (await handle.getFile()).size;
          return found;
        }}"""
    )
    return found


def test_a_stored_file_that_the_engine_cannot_read_is_not_called_ready(visit: Visit) -> None:
    first = started(visit)
    times = first.evaluate(TIMES)
    overwrite(first, (8, 2008))
    page = visit.open()
    expect(complaint(page)).to_have_text(DAMAGED)
    expect(page.locator("body")).to_have_attribute("data-model", "idle")
    expect(page.locator("#start")).to_have_text("Start")
    expect(page.locator("#forget")).to_be_hidden()
    assert stored(page) == {}
    assert page.evaluate(TIMES) == times, "what did not start was not measured"
    assert page.workers == []
    page.get_by_role("button", name="Fetch again").click()
    expect(page.locator("body")).to_have_attribute(*READY)
    assert stored(page) == {FILE: SMALL.size_bytes}
    assert len(visit.weights) == 2


def test_a_file_that_is_damaged_inside_is_found_out_while_the_model_runs(visit: Visit) -> None:
    overwrite(started(visit), (40_000_000, 40_060_000), (60_000_000, 60_060_000))
    page = visit.open()
    page.locator("#reference").fill(REFERENCE)
    page.locator("#question").fill(QUESTION)
    page.locator("#ask").click()
    expect(complaint(page)).to_have_text(DAMAGED)
    expect(column(page.locator(".exchange"), "browser").locator(".failure")).to_contain_text("damaged")
    expect(page.locator("body")).to_have_attribute("data-model", "idle")
    expect(page.locator("#start")).to_have_text("Start")
    expect(page.locator("#why")).to_be_hidden()
    assert stored(page) == {}


def test_a_whole_file_that_the_engine_has_no_room_for_is_kept(visit: Visit) -> None:
    page = visit.open()
    # No machine has the memory for such a window.
    page.evaluate(
        "() => { const most = document.querySelector('#window option:last-child'); most.value = '2000000000'; }"
    )
    page.locator("#window").select_option("2000000000")
    page.locator("#start").click()
    expect(complaint(page)).to_contain_text("The engine did not take the model, whose file is whole")
    expect(page.locator("body")).to_have_attribute("data-model", "idle")
    assert page.evaluate(TIMES) is None
    assert stored(page) == {FILE: SMALL.size_bytes}
    page.get_by_role("button", name="Try one thread and a short window").click()
    expect(page.locator("body")).to_have_attribute(*READY)
    assert len(visit.weights) == 1


def test_where_the_browser_offers_no_storage_the_model_runs_from_memory(visit: Visit) -> None:
    visit.context.add_init_script("delete globalThis.StorageManager?.prototype.getDirectory")
    page = started(visit)
    expect(page.locator("#model-notes .note")).to_contain_text("refuses to keep the weights (not offered here)")
    expect(page.locator("#forget")).to_be_hidden()
    # Another window is opened from what is in memory, and its times are told beside the others'.
    expect(page.locator("#times-memory")).to_be_hidden()
    page.locator("#window").select_option("2048")
    expect(page.locator("#times-memory")).to_have_text("From memory, now")
    expect(page.locator("body")).to_have_attribute(*READY)
    rows = page.locator("#times-body tr").all_inner_texts()
    assert re.fullmatch(r"Weights fetched or opened\s[\d.]+ m?s\s–\s–", rows[0]), rows
    assert re.fullmatch(r"Model loaded\s[\d.]+ m?s\s–\s[\d.]+ m?s", rows[2]), rows
    assert len(visit.weights) == 1


def broken_off(visit: Visit) -> tuple[Page, list[dict[str, str]]]:
    """A page whose fetch broke in the middle, and the headers of its requests for the file."""
    asked: list[dict[str, str]] = []
    visit.context.on("request", lambda one: asked.append(one.headers) if one.url.endswith(".gguf") else None)
    page = visit.open()
    page.evaluate(BREAK)
    page.locator("#start").click()
    expect(complaint(page)).to_have_text("The connection broke after 40 of 98 MB. Try again.")
    expect(page.locator("#forget")).to_be_visible()
    assert stored(page) == {f"{FILE}.part": BREAKS_AT}
    page.evaluate(
        """() => {
          window.said = [];
          const place = document.getElementById("amount");
          new MutationObserver(() => window.said.push(place.textContent)).observe(place, {childList: true});
        }"""
    )
    return page, asked


def test_a_fetch_that_broke_off_goes_on_where_it_was(visit: Visit) -> None:
    page, asked = broken_off(visit)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("body")).to_have_attribute(*READY)
    assert [headers.get("range") for headers in asked] == [None, f"bytes={BREAKS_AT}-"]
    assert asked[1]["if-range"] == f'"{SMALL.sha256}"'
    shown = [int(text.split()[0]) for text in page.evaluate("() => window.said") if text]
    assert min(shown) >= BREAKS_AT // 1_000_000
    assert stored(page) == {FILE: SMALL.size_bytes}
    row = page.locator("#times-body tr").first
    assert re.fullmatch(r"Weights fetched or opened\s–\s–", row.inner_text()), "the rest is not the whole"


@pytest.mark.parametrize("answer", ["another file", "no such part", "another part"])
def test_what_a_server_does_not_go_on_with_is_fetched_anew(visit: Visit, answer: str) -> None:
    page, asked = broken_off(visit)

    def instead(route: Route) -> None:
        headers = route.request.headers
        if "range" not in headers:
            route.continue_()
        elif answer == "another file":
            route.continue_(headers={**headers, "if-range": '"of another file"'})
        elif answer == "no such part":
            route.continue_(headers={**headers, "range": f"bytes={SMALL.size_bytes}-"})
        else:
            route.continue_(headers={**headers, "range": "bytes=98000000-"})

    page.route("**/*.gguf", instead)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("body")).to_have_attribute(*READY)
    assert len(asked) == (2 if answer == "another file" else 3)
    assert stored(page) == {FILE: SMALL.size_bytes}


def test_a_part_is_kept_by_cancel_and_deleted_with_the_weights(visit: Visit) -> None:
    page, _ = broken_off(visit)
    page.route("**/*.gguf", lambda route: route.abort())
    page.get_by_role("button", name="Try again").click()
    expect(complaint(page)).to_contain_text("The server is not there")
    page.unroute("**/*.gguf")
    held: list[Route] = []
    page.route("**/*.gguf", lambda route: held.append(route))
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#amount")).to_have_text("40 of 98 MB")
    expect(page.locator("#forget")).to_be_hidden()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("body")).to_have_attribute("data-model", "idle")
    expect(page.locator("#forget")).to_be_visible()
    assert stored(page) == {f"{FILE}.part": BREAKS_AT}
    page.locator("#forget").click()
    expect(page.locator("#forget")).to_be_hidden()
    assert stored(page) == {}


def test_what_had_come_slowly_before_a_tab_was_closed_is_not_fetched_again(visit: Visit) -> None:
    page = visit.open()
    page.clock.install()
    page.evaluate(
        """() => {
          const fetched = window.fetch;
          const more = new Promise((resolve) => { window.more = resolve; });
          window.fetch = async (address, options) => {
            const answer = await fetched(address, options);
            if (!String(address).endsWith(".gguf")) return answer;
            const pauses = [more, new Promise(() => {})];
            let left = 20e6;
            const slow = new TransformStream({
              async transform(chunk, through) {
                while (chunk.length > left) {
                  through.enqueue(chunk.subarray(0, left));
                  chunk = chunk.subarray(left);
                  left = 20e6;
                  await pauses.shift();
                }
                left -= chunk.length;
                through.enqueue(chunk);
              },
            });
            return new Response(answer.body.pipeThrough(slow), answer);
          };
        }"""
    )
    page.locator("#start").click()
    expect(page.locator("#amount")).to_have_text("20 of 98 MB")
    page.clock.fast_forward(6000)
    page.evaluate("() => window.more()")
    expect(page.locator("#amount")).to_have_text("40 of 98 MB")
    page.close()
    page = visit.open()
    expect(page.locator("#forget")).to_be_visible()
    ((name, kept),) = stored(page).items()
    assert name == f"{FILE}.part"
    assert 20_000_000 < kept < 40_000_000
    with page.expect_request("**/*.gguf") as asked:
        page.locator("#start").click()
    assert asked.value.headers["range"] == f"bytes={kept}-"
    expect(page.locator("body")).to_have_attribute(*READY)


def test_the_second_click_of_a_double_click_means_nothing(visit: Visit) -> None:
    visit.context.route("**/*.gguf", lambda route: None)  # it never comes
    page = visit.open()
    place = page.locator("#start").bounding_box()
    page.locator("#start").dblclick()
    expect(page.locator("#model-state")).to_have_text("Fetching from the server")
    expect(page.locator("#start")).to_have_text("Cancel")
    assert page.locator("#model-fold").evaluate("(fold) => fold.open")
    now = page.locator("#start").bounding_box()
    assert place is not None
    assert now is not None
    assert abs(now["y"] - place["y"]) < now["height"] / 2, "it is still below the pointer"
    page.locator("#start").click()
    expect(page.locator("body")).to_have_attribute("data-model", "idle")


def test_what_an_engine_says_of_its_end_is_told_if_it_says_anything(visit: Visit) -> None:
    page = visit.open()
    tell = "async (said) => (await import('./ondevice/faults.js')).faultOf(new Error(said), false).message"
    for nothing in ("(ABORT) ", "abort", "Aborted(native code called abort())", "(unknown error)", "unreachable", ""):
        assert page.evaluate(tell, nothing) == "The model stopped unexpectedly. Start it anew.", nothing
    something = "The model stopped unexpectedly (no such tensor). Start it anew."
    assert page.evaluate(tell, "(ABORT) no such tensor.") == something
