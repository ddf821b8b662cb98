"""The number formats of a workbook: which show money, and which another number than the cell's."""

from __future__ import annotations

import time

import pytest

from worker.importer.number_formats import Styles, shows_another_number, shows_money, styles_of


def test_the_format_of_a_condition_is_not_that_of_a_cell() -> None:
    own = '<numFmts><numFmt numFmtId="164" formatCode="%s"/></numFmts>'
    cells = '<cellXfs><xf numFmtId="164"/></cellXfs>'
    condition = '<dxfs><dxf><numFmt numFmtId="164" formatCode="%s"/></dxf></dxfs>'
    styles = f"<styleSheet>{own}{cells}{condition}</styleSheet>"
    assert styles_of((styles % ("0", "0.00")).encode()) == Styles()
    assert styles_of((styles % ("0.00", "0")).encode()).money == {b"0"}
    assert styles_of((styles % ("[>100]0.00;0", "0")).encode()).money == {b"0"}


def test_a_format_with_a_number_that_no_format_has_shows_no_money() -> None:
    cells = f'<xf numFmtId="{"9" * 5000}"/><xf numFmtId="2"/><xf numFmtId=""/>'
    assert styles_of(f"<x><cellXfs>{cells}</cellXfs></x>".encode()).money == {b"1"}


def test_a_format_of_many_cells_is_looked_at_once() -> None:
    code = "#" * 50_000
    own = f'<numFmts><numFmt numFmtId="164" formatCode="{code}"/></numFmts>'
    cells = '<xf numFmtId="164"/>' * 5_000
    began = time.process_time()
    styles = f"<styleSheet>{own}<cellXfs>{cells}</cellXfs></styleSheet>"
    assert styles_of(styles.encode()) == Styles()
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("code", "money"),
    [
        ("General", False),
        ("0", False),
        ("#,##0", False),
        ("@", False),
        ('0" pieces"', False),
        (r"#,##0\.", False),
        ("_-* #,##0_-;[Red]-* #,##0_-", False),
        ("[$-409]#,##0", False),
        ("0.00", True),
        ("#,##0.##", True),
        ('"$"#,##0', True),
        (r"\$#,##0", True),
        ("$0", True),
        ("[$€-407] #,##0", True),
        ("[$kr-41D] 0", True),
        ('0 "EUR"', True),
        (r'_-* #,##0.00\ "zł"_-', True),
        (r'#,##0\ "kr";[Red]\-#,##0\ "kr"', True),
        (r'_-* #,##0\ "Kč"_-;\-* #,##0\ "Kč"_-;_-* "-"\ "Kč"_-;_-@_-', True),
        (r"#,##0\ \z\ł", True),
        ('"Rp"#,##0', True),
        (r'#,##0\ "лв."', True),
        ('0 "HUF"', True),
        ('"Fr." #,##0;"Fr." -#,##0', True),
        ('0"元"', True),
        ('#,##0 "TL"', True),
        ('"Rs" #,##0', True),
        ('"RMB" 0', True),
        ('#,##0" Euro"', True),
        ('"S/" #,##0', True),
        ('#,##0"грн."', True),
        ('0 "krona-pieces"', False),
    ],
)
def test_a_number_format_shows_money_by_its_decimals_or_currency(code: str, *, money: bool) -> None:
    assert (shows_money(code), shows_another_number(code)) == (money, False)


@pytest.mark.parametrize(
    "code",
    [
        "#,##0,",
        "#,##0,,",
        "0.0,",
        "#,##0,.00",
        '#,##0.0," k"',
        '0" k",',
        "0;-0,",
        "0%",
        "0.00%",
        "General%",
        r"0\.00",
        '0"."00',
        r"#,##0\,00",
        "0[$€]00",
        "0€00",
        '0"$"00',
        '0".00"',
        '0"00"',
        r"\10",
        "0:00",
        "0-00",
        '0" "00',
        "0' '00",
        ";;;",
        ";;;@",
        '"paid"',
        '"1,2"',
    ],
)
def test_a_number_format_shows_another_number(code: str) -> None:
    assert shows_another_number(code)


@pytest.mark.parametrize(
    "code",
    [
        r"#\ ##0",
        r"#\'##0",
        "#\u2019##0",
        '_(* #,##0_);_(* (#,##0);_(* "-"??_);_(@_)',
        '#,##0;-#,##0;"0.00"',
        "# ?/16",
        "# ?/?",
        "0.00E+00",
        "0.000 000",
        r"#\ ###\ ##0.00",
        "(0)-",
        "@",
        '[=0]"";General',
        r"yyyy\-mm\-dd",
        "G/通用格式",
        "[Red]",
        "",
        '[<100]0" (low), "',
        '"a, b "0',
        "[$-409]#,##0.00",
    ],
)
def test_a_number_format_shows_the_number_itself(code: str) -> None:
    assert not shows_another_number(code)
