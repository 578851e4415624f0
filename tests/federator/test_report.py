"""federator/report.py with its charts, page, tables, sums and numbers: what people read is what the ledger holds."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from feddiff.core.errors import DataError, StoreError
from feddiff.core.segments import Layout, cut
from feddiff.federator.cost import Cost, costs
from feddiff.federator.ledger import Direction, Entry
from feddiff.federator.measure import amount, duration, ratio
from feddiff.federator.report import RoundSummary, Story, summary, write

LAYOUT: Layout = cut(
    [
        ("conv_in.weight", (32, 1, 3, 3)),
        ("time_embedding.linear_1.weight", (128, 128)),
        ("down_blocks.0.weight", (32, 32, 3, 9)),
        ("down_blocks.1.weight", (64, 64, 3, 9)),
        ("mid_block.weight", (64, 64, 3, 12)),
        ("up_blocks.0.weight", (64, 128, 3, 9)),
        ("up_blocks.1.weight", (32, 64, 3, 9)),
        ("conv_out.weight", (1, 32, 3, 3)),
    ]
)
SILOS = ("akershus", "bergen", "tromsø")
ROUNDS = 12


def usplit(silo: int, number: int, segment: str) -> bool:
    """Who sends what up: enough like the plan to give the charts their shape."""
    return segment == "bottleneck" or segment.startswith("encoder" if (silo + number) % 2 else "decoder")


def rows(number: int, silo: int) -> list[Entry]:
    name, found = SILOS[silo], []
    for segment in LAYOUT.segments:
        raw = 4 * segment.size
        directions: list[Direction] = ["down", *(["up"] if usplit(silo, number, segment.name) else [])]  # type: ignore[list-item]
        for direction in directions:
            encoded = raw if (direction, number) == ("down", 1) else raw // (2 if direction == "down" else 4)
            again = encoded // 3 if (silo, number, segment.name) == (2, 5, "decoder.0") else 0
            wire = encoded + again + encoded // 50 + 90
            found.append(
                Entry(number, name, segment.name, direction, segment.size, raw, encoded, wire, again, encoded / 2e6)
            )
    return [
        *found,
        Entry(number, name, "", "down", wire=2_100),
        Entry(number, name, "", "up", wire=3_700 + 10 * number),
    ]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    picture = tmp_path / "samples.png"
    Image.radial_gradient("L").resize((128, 64)).save(picture)
    here = {number: (0, 1) if number == 7 else (0, 1, 2) for number in range(1, ROUNDS + 1)}
    return Story(
        federation="nordic-digits",
        policy="usplit",
        config='{\n  "plan": "usplit",\n  "rounds": {"count": 12}\n}',
        config_digest="5f1d" * 16,
        layout=LAYOUT,
        rounds=[
            RoundSummary(
                number,
                len(silos),
                len(SILOS),
                {
                    SILOS[s]: 0.04 + 0.5 * math.exp(-number / 3) + 0.02 * s + 0.005 * ((number * 7 + s) % 3)
                    for s in silos
                },
                1_760_000_000 + 95.5 * number,
                1_760_000_000 + 95.5 * number + 90.25,
            )
            for number, silos in here.items()
        ],
        entries=[entry for number, silos in here.items() for silo in silos for entry in rows(number, silo)],
        samples=picture,
        codec_up="int8",
        codec_down="fp16",
    )


class Tables(HTMLParser):
    """The cells of a page's tables, and whatever its tags point at."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[list[list[str]]] = []
        self.targets: list[str] = []
        self.tags: set[str] = set()
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets += [value or "" for key, value in attrs if key in {"src", "href", "xlink:href", "data", "action"}]
        self._cell = tag in {"td", "th"}
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if self._cell:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data


def page_of(story: Story, folder: Path) -> str:
    return write(story, folder).read_text(encoding="utf-8")


class TestNumbers:
    def test_of_the_text_are_the_entries_sums(self, story: Story) -> None:
        text = summary(story)
        down = sum(entry.wire for entry in story.entries if entry.direction == "down")
        up = sum(entry.wire for entry in story.entries if entry.direction == "up")
        full = 2 * sum(each.planned for each in story.rounds) * LAYOUT.size * 4
        assert f"{amount(down)} down, {amount(up)} up" in text
        assert f"{amount(full)}, {ratio(full, down + up)} the wire" in text
        assert f"{amount(sum(entry.retransmitted for entry in story.entries))} retransmitted" in text
        assert "12 rounds, 3 silos, 19 min 00 s" in text
        assert f"{story.rounds[0].loss:.3g} → {story.rounds[-1].loss:.3g}" in text

    def test_of_the_page_are_those_of_the_text(self, story: Story, tmp_path: Path) -> None:
        page, total = page_of(story, tmp_path), Cost.of(story.entries)
        for size in (total.down, total.up, total.retransmitted):
            assert f"<strong>{amount(size)}</strong>" in page

    def test_of_each_round_stand_in_its_row(self, story: Story, tmp_path: Path) -> None:
        head, *lines, total = Tables(page_of(story, tmp_path)).tables[0]
        assert head[0] == "round"
        assert [line[0] for line in lines] == [str(number) for number in range(1, ROUNDS + 1)]
        here = Cost.of(entry for entry in story.entries if entry.round == 7)
        full = ratio(2 * 3 * LAYOUT.size * 4, here.wire)
        loss = f"{story.rounds[6].loss:.3g}"
        assert lines[6] == ["7", "2 of 3", loss, amount(here.down), amount(here.up), full, "90.2"]
        assert total[3:5] == [amount(Cost.of(story.entries).down), amount(Cost.of(story.entries).up)]

    def test_of_each_segment_stand_in_its_row(self, story: Story, tmp_path: Path) -> None:
        _, *lines, _ = Tables(page_of(story, tmp_path)).tables[1]
        assert [line[0] for line in lines] == [*LAYOUT.names, "protocol"]
        for line, name in zip(lines, (*LAYOUT.names, ""), strict=True):
            cost = Cost.of(entry for entry in story.entries if entry.segment == name)
            assert line[2:6] == [amount(size) for size in (cost.raw, cost.encoded, cost.down, cost.up)]

    def test_of_each_silo_stand_in_its_row(self, story: Story, tmp_path: Path) -> None:
        _, *lines, _ = Tables(page_of(story, tmp_path)).tables[2]
        assert [line[:2] for line in lines] == [["akershus", "12"], ["bergen", "12"], ["tromsø", "11"]]
        assert lines[2][3] == amount(Cost.of(e for e in story.entries if e.silo == "tromsø").down)

    def test_before_the_first_round_and_in_an_open_one_are_counted(self, story: Story, tmp_path: Path) -> None:
        more = [Entry(0, "bergen", "", "up", wire=777), Entry(13, "bergen", "bottleneck", "down", 1, 4, 4, 50)]
        page = page_of(replace(story, entries=[*story.entries, *more]), tmp_path)
        _, first, *_, last, _ = Tables(page).tables[0]
        assert first == ["0", "–", "–", "0 B", "777 B", "–", "–"]
        assert last == ["13", "–", "–", "50 B", "0 B", "–", "–"]

    def test_that_were_estimated_are_told(self, story: Story, tmp_path: Path) -> None:
        assert "computed from message sizes" not in page_of(story, tmp_path)
        guessed = [replace(entry, estimated=True) for entry in story.entries[:3]]
        page = page_of(replace(story, entries=[*guessed, *story.entries[3:]]), tmp_path)
        assert f"In 3 of {len(story.entries)} rows" in page

    @given(st.lists(st.builds(Entry, st.integers(0, 3), st.sampled_from("ab"), st.sampled_from(["", "bottleneck"]),
                              st.sampled_from(["down", "up"]), wire=st.integers(0, 10**12))))  # fmt: skip
    def test_are_the_same_however_they_are_grouped(self, entries: list[Entry]) -> None:
        whole = Cost.of(entries)
        for groups in (costs(entries, lambda e: e.round), costs(entries, lambda e: e.silo)):
            assert sum(cost.down for cost in groups.values()) == whole.down
            assert sum(cost.up for cost in groups.values()) == whole.up
        assert whole.wire == sum(entry.wire for entry in entries)


class TestPage:
    def test_stands_beside_two_pictures(self, story: Story, tmp_path: Path) -> None:
        folder = tmp_path / "deep" / "report"
        assert write(story, folder) == folder / "report.html"
        assert {path.name for path in folder.iterdir()} == {"report.html", "loss.png", "bytes.png"}
        for name in ("loss.png", "bytes.png"):
            with Image.open(folder / name) as picture:
                assert picture.width > 600

    def test_needs_nothing_from_elsewhere(self, story: Story, tmp_path: Path) -> None:
        page = page_of(story, tmp_path)
        seen = Tables(page)
        assert not {"script", "link", "iframe", "object", "embed"} & seen.tags
        assert {target[:5] for target in seen.targets if not target.startswith("#")} == {"data:"}
        assert not re.search(r"https?:|@import|url\((?!#)", page)

    def test_points_inside_itself_only_at_what_is_there_once(self, story: Story, tmp_path: Path) -> None:
        page = page_of(story, tmp_path)
        ids = re.findall(r' id="([^"]+)"', page)
        assert len(ids) == len(set(ids)) > 0
        assert {target[1:] for target in Tables(page).targets if target.startswith("#")} <= set(ids)

    def test_escapes_every_name(self, story: Story, tmp_path: Path) -> None:
        evil = "<b onload=x>&$x^2$"
        entries = [replace(entry, silo=evil) for entry in story.entries[:9]]
        rounds = [replace(story.rounds[0], losses={evil: 0.5})]
        samples = [(evil, story.samples)] if isinstance(story.samples, Path) else []
        page = page_of(
            replace(
                story, federation=evil, policy=evil, config=evil, config_digest=evil, codec_up=evil, codec_down=evil,
                entries=entries, rounds=rounds, samples=samples,
            ),
            tmp_path,
        )  # fmt: skip
        assert "<b " not in page
        assert page.count("&lt;b onload=x&gt;&amp;$x^2$") >= 8

    def test_is_the_same_for_the_same_story(self, story: Story, tmp_path: Path) -> None:
        assert page_of(story, tmp_path / "one") == page_of(story, tmp_path / "two")

    def test_tells_of_a_federation_that_has_not_begun(self, story: Story, tmp_path: Path) -> None:
        empty = replace(story, rounds=[], entries=[], samples=[])
        assert "0 rounds, 0 silos, 0.0 s" in summary(empty)
        assert "<strong>0 B</strong>" in page_of(empty, tmp_path)
        assert "Drawn by the model" not in page_of(empty, tmp_path)

    @pytest.mark.parametrize("silos", [1, 9, 40])
    def test_tells_of_one_round_and_any_number_of_silos(self, story: Story, silos: int, tmp_path: Path) -> None:
        names = [f"silo-{number:02}" for number in range(silos)]
        entries = [replace(story.entries[0], silo=name) for name in names]
        losses = {name: math.nan if name == "silo-00" else 0.5 for name in names}
        rounds = [replace(story.rounds[0], silos=silos, losses=losses)]
        page = page_of(replace(story, entries=entries, rounds=rounds), tmp_path)
        assert [line[0] for line in Tables(page).tables[2]][1:-1] == names

    def test_holds_several_pictures_with_their_titles(self, story: Story, tmp_path: Path) -> None:
        assert isinstance(story.samples, Path)
        page = page_of(replace(story, samples=[("akershus", story.samples), ("bergen", story.samples)]), tmp_path)
        assert re.findall(r'<img width="(\d+)" alt="(\w+)" src="data:image/png;base64,', page) == [
            ("256", "akershus"),
            ("256", "bergen"),
        ]

    def test_takes_only_png(self, story: Story, tmp_path: Path) -> None:
        fake = tmp_path / "fake.png"
        fake.write_text("<svg onload=x>" * 10)
        with pytest.raises(DataError, match="not a PNG"):
            write(replace(story, samples=fake), tmp_path)

    def test_says_where_it_cannot_read_or_write(self, story: Story, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"none\.png"):
            write(replace(story, samples=tmp_path / "none.png"), tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match="cannot be written"):
            write(story, tmp_path / "file")


class TestMeasure:
    @pytest.mark.parametrize(
        ("size", "text"),
        [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (12_345, "12.3 kB"),
            (123_456_789, "123 MB"),
            (2e12, "2.00 TB"),
        ],
    )
    def test_amounts_are_decimal_with_three_figures(self, size: float, text: str) -> None:
        assert amount(size) == text

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (185.9, "3 min 05 s"), (99_600, "27 h 40 min")]
    )
    def test_durations_are_read_at_a_glance(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text

    @pytest.mark.parametrize(
        ("whole", "part", "text"), [(8, 1, "8.00×"), (9, 10, "0.90×"), (1234, 1, "1234×"), (1, 0, "–"), (0, 1, "–")]
    )
    def test_ratios_with_nothing_are_none(self, whole: int, part: int, text: str) -> None:
        assert ratio(whole, part) == text


def test_matplotlib_is_loaded_only_to_draw() -> None:
    code = "import sys, feddiff.federator.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
