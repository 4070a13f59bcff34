"""The tables of the pages are what the registry knows."""

import pytest
import tables


@pytest.mark.parametrize("name", tables.PAGES)
def test_the_table_is_up_to_date(name):
    assert tables.PAGES[name].read_text() == tables.filled(name), "run python tests/tables.py"


def test_a_stale_table_is_noticed(tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text(tables.PAGES["neurons"].read_text().replace("`empf`", "`epmf`"))
    monkeypatch.setitem(tables.PAGES, "neurons", page)
    assert page.read_text() != tables.filled("neurons")
