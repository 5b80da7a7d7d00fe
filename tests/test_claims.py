"""What the papers say in words is data, too: complete, judged by known words, and led to a page of the book."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from srlib import papers, results, tables, viz

yaml = pytest.importorskip("yaml")

CLAIMS = papers.claims()
VERDICTS = {"holds", "holds in part", "not seen here", "can't be told here"}
TOC = Path(__file__).resolve().parent.parent / "book" / "_toc.yml"


@pytest.mark.parametrize("slug", papers.all_papers())
def test_a_paper_has_ten_claims_or_more_and_each_is_judged(slug: str) -> None:
    claims = CLAIMS[CLAIMS.paper == slug]
    assert list(claims.columns) == "claim place evidence link verdict why paper".split() and len(claims) >= 10
    assert not (claims == "").any().any(), "every claim has a place, evidence, link, verdict and reason"
    assert set(claims.verdict) <= VERDICTS <= set(viz.BADGES)
    assert not claims.claim.duplicated().any()


def test_places_are_in_the_paper() -> None:
    """As in "Abstract", "Section 4.2; Table 1, x4" or "Figure 5"."""
    assert CLAIMS.place.str.contains(r"Abstract|Introduction|Conclusion|Contribution|Section|Table|Figure|Eq").all()


def test_links_lead_to_pages_of_the_book() -> None:
    known = {f"/{line.split(': ')[1].strip()}" for line in TOC.read_text().splitlines() if "file:" in line}
    assert set(CLAIMS.link.str.partition("#")[0]) <= known


@pytest.mark.skipif(results.folder() is None, reason="the evidence lies in the repository, in book/results")
def test_evidence_has_the_numbers_of_the_records_and_verdicts_follow_them() -> None:
    """Of the rows that a claim names, some agree with print and none is opposite where it "holds", and none is told
    from chance where it "can't be told here"."""
    assert not tables.claims().evidence.str.contains("[{}]").any()
    printed = cache(lambda *place: tables.ablation(*place, lengths=True).query("ours != ''").drop_duplicates("name"))
    for claim in CLAIMS.itertuples():
        found = [(number, row) for number, row in tables.MENTION.findall(claim.evidence) if row]
        places = [(number, papers.row(claim.paper, number, row).name) for number, row in found]
        frames = [(printed(claim.paper, number), row) for number, row in places if number in papers.tables(claim.paper)]
        trends = {trend for frame, row in frames for trend in frame.trend[frame["name"] == row]}
        assert trends or not frames, f"no row of this claim is trained: {claim.claim}"
        if claim.verdict == "holds" and frames:
            assert "agrees" in trends and "opposite" not in trends, claim.claim
        assert claim.verdict != "can't be told here" or trends <= {"undecided"}, claim.claim
