"""`clearhead tokenize`, and texts from arguments, files and pipes."""

import ast
import json
from pathlib import Path

from command_line import call, refused

TEXT = "The model's heads: 12 of them, naïve 🎉\n\n  <|endoftext|> end"


def test_tokenize_gives_the_ids_of_transformers(vocabulary: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(vocabulary)
    result = call("tokenize", "-m", vocabulary, TEXT, "--ids", "--special")
    assert result.returncode == 0
    assert [int(word) for word in result.stdout.split()] == theirs.encode(TEXT, add_special_tokens=False)


def test_tokenize_shows_pieces_and_counts(vocabulary: Path) -> None:
    result = call("tokenize", "-m", vocabulary, TEXT)
    *rows, summary = result.stdout.decode().splitlines()
    ids = [int(word) for word in call("tokenize", "-m", vocabulary, TEXT, "--ids").stdout.split()]
    assert [int(row.split()[0]) for row in rows] == ids
    pieces = [row.strip().partition("  ")[2] for row in rows]
    data = b"".join(
        bytes.fromhex(piece.strip("<>")) if piece.startswith("<") else ast.literal_eval(piece).encode()
        for piece in pieces
    )
    assert data.decode() == TEXT
    size = len(TEXT.encode())
    expected = f"{len(ids)} tokens, {len(TEXT)} characters, {size} bytes: {size / len(ids):.1f} bytes a token"
    assert summary == expected


def test_tokenize_as_json(vocabulary: Path) -> None:
    shown = json.loads(call("tokenize", "-m", vocabulary / "tokenizer.json", "two words", "--json").stdout)
    assert "".join(shown["pieces"]) == "two words"
    assert shown["tokens"] == len(shown["ids"]) == len(shown["pieces"])
    assert shown["characters"] == shown["bytes"] == 9


def test_text_comes_from_the_argument_a_file_or_a_pipe(vocabulary: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    ways = [
        call("tokenize", "-m", vocabulary, "--ids", TEXT),
        call("tokenize", "-m", vocabulary, "--ids", "--file", path),
        call("tokenize", "-m", vocabulary, "--ids", stdin=TEXT.encode()),
        call("tokenize", "-m", vocabulary, "--ids", "-", stdin=TEXT.encode()),
        call("tokenize", "-m", vocabulary, "--ids", "--file", "-", stdin=TEXT.encode()),
    ]
    assert {(way.returncode, way.stdout, way.stderr) for way in ways} == {(0, ways[0].stdout, b"")}


def test_decode_gives_every_byte_back(vocabulary: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode() + b"\r\n\n")
    ids = call("tokenize", "-m", vocabulary, "--ids", "--file", path).stdout
    assert call("tokenize", "-m", vocabulary, "--decode", stdin=ids).stdout == path.read_bytes()
    pasted = json.dumps([int(word) for word in ids.split()])
    assert call("tokenize", "-m", vocabulary, "--decode", pasted).stdout == path.read_bytes()


def test_tokenize_refuses_in_a_sentence(vocabulary: Path, tmp_path: Path) -> None:
    assert "'x' is not a token id" in refused(call("tokenize", "-m", vocabulary, "--decode", "1 x"))
    assert "no token with the id 400" in refused(call("tokenize", "-m", vocabulary, "--decode", "400"))
    broken = tmp_path / "latin.txt"
    broken.write_bytes("café".encode("latin-1"))
    assert "is not UTF-8 text (unexpected end of data at byte 3)" in refused(
        call("tokenize", "-m", vocabulary, "--file", broken)
    )
    assert "could not be read" in refused(call("tokenize", "-m", vocabulary, "--file", tmp_path / "none.txt"))
    assert "given twice" in refused(call("tokenize", "-m", vocabulary, "--file", broken, "text"))
    assert "does not exist" in refused(call("tokenize", "-m", "./nowhere", "text"))
    result = call("tokenize", "-m", vocabulary, "--ids", "--json", "text")
    assert result.returncode == 2
    assert b"only one of --ids, --json and --decode" in result.stderr
