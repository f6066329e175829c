"""Tables in a terminal fit it; in a file or a pipe nothing is cut."""

from server.commands.tables import console, table


def test_no_column_is_cut_where_the_output_is_no_terminal(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    wide = table("Scores")
    for number in range(30):
        wide.add_column(f"column {number}", no_wrap=True)
    wide.add_row(*(f"cell of column {number}" for number in range(30)))
    console().print(wide)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4  # title, headings, a rule, the row
    assert all(f"cell of column {number}" in lines[3] for number in range(30))
    assert max(map(len, lines)) < 30 * 25


def test_a_width_that_is_asked_for_holds(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    narrow = table("Words")
    narrow.add_column("words")
    narrow.add_row("word " * 30)
    console().print(narrow)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40
