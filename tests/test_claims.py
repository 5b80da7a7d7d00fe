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
    claims = papers.claims(slug)
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
def test_evidence_has_the_numbers_of_the_records_and_no_verdict_contradicts_them() -> None:
    """A claim that holds names no trained row that doesn't agree with print; of one that can't be told none does."""
    assert not tables.claims().evidence.str.contains("[{}]").any()
    printed = cache(lambda *place: tables.table(*place, counts=False).set_index("name").trend)
    for claim in CLAIMS.query("verdict in ['holds', \"can't be told here\"]").itertuples():
        wanted = {"", "agrees" if claim.verdict == "holds" else "undecided"}
        for number, row in tables.MENTION.findall(claim.evidence):
            if row and number in papers.tables(claim.paper):
                trends = printed(claim.paper, number)[papers.row(claim.paper, number, row).name]
                assert {*trends} <= wanted, f"{claim.paper}, {row}: {claim.claim}"
