r"""Pieces join to the text, prefixes end visibly, and cuts stand where said."""

import time

from hypothesis import given, settings, strategies as st
import pytest

from palign_jax.core import errors
from palign_jax.text import sentences

# Much of what decides a cut, so that hypothesis meets it often.
ATOMS = st.sampled_from(
    ' . ,. , a B 1 Dr e.g. 3.14 - * ** # ! ? ... ! ) ] | = " ” 5! 🙂 é'.split()
    + ['. ', '1. ', ' ', '  ', '\t', '\n', '\r', '\r\n', '\u2028', '\u3000']
    + ['\x1c', '\u200b', '。', '！', '，', '一', '$', '$$', r'\[', r'\]', r'\(']
    + [r'\)', '\\', r'\begin{a}', r'\end{a}', r'\begin{b}', r'\end{b}']
)
TEXTS = st.one_of(st.text(), st.lists(ATOMS, max_size=40).map(''.join))


@pytest.mark.parametrize('splitter', sentences.SPLITTERS)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_pieces_join_and_cuts_agree(splitter, text):
  pieces = sentences.pieces(text, splitter)
  cuts = sentences.cuts(text, splitter)
  assert ''.join(pieces) == text
  if not text.strip():
    assert not cuts and pieces == ([text] if text else [])
    return
  assert all(piece.strip() for piece in pieces)
  # White space belongs to the piece that follows, but to the last at the end.
  assert all(not piece[-1].isspace() for piece in pieces[:-1])
  ends, start = [], 0
  for piece in pieces:
    ends.append(start + len(piece.rstrip()))
    start += len(piece)
  assert cuts == ends
  assert cuts == sorted(set(cuts))
  assert all(not text[cut - 1].isspace() for cut in cuts)
  assert not text[cuts[-1] :].strip()


def reference(text):
  """`split_sentences` of src/binary_search.py, 4ddef39, without its edits."""
  return [s for s in text.split('. ') if s.strip()]


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_reference_has_the_sentences_of_the_reference(text):
  want = reference(text)
  got = sentences.pieces(text, 'reference')
  if not want:  # Only separators: the reference then divides by zero.
    assert len(got) <= 1
    return
  assert len(got) == len(want)
  bare = lambda s: ''.join(s.replace('.', '').split())
  assert [bare(p) for p in got] == [bare(w) for w in want]


@pytest.mark.parametrize(
    'text, want',
    [
        ('One. Two. Three', ['One.', ' Two.', ' Three']),
        ('One.  Two. \n', ['One.', '  Two. \n']),
        ('One.\nTwo? Three', ['One.\nTwo? Three']),
        ('1. One', ['1.', ' One']),
        ('One. . Two', ['One.', ' . Two']),
        ('One. . ', ['One. . ']),
        ('. One', ['. One']),
        ('One. .', ['One.', ' .']),
        ('. . ', ['. . ']),
        ('Hmm... Two', ['Hmm...', ' Two']),
    ],
)
def test_reference_by_hand(text, want):
  assert sentences.pieces(text, 'reference') == want


@pytest.mark.parametrize(
    'pieces',
    [
        ['One.', ' Two?', ' Three!', '  Four'],
        ['He said "No."', ' Then (it was so.)', " It's “done!”", ' Yes'],
        ['**Answer.**', ' It is 5.', ' Then 6.'],
        ['One', '\nTwo', '\r\n\r\nThree', '\u2028Four \n '],
        ['是的。', '不是！', '「为什么？」', '因为。', ' 好'],
        ['Pi is 3.14 or so.', ' And .5 is a half.', ' See example.com today.'],
        ['Take e.g. five, i.e. 5, etc. and so on.', ' Dr. No vs. Mr. Yes.'],
        ['By Fig. 3 and Eq. (2) it is approx. 7.', ' See no. 4.'],
        ['Wait, no.', ' Let me see.'],
        ['At 5 p.m. the U.S. team of J. K. Rowling left.', ' So it is.'],
        ['It goes through A.', ' Then to B.', ' AB is long.', ' x is C.', ' 5'],
        ['Solve for x.', ' Then y.', ' It is so.'],
        ['List:', '\n1. One.', '\n2. Two?', ' Yes.', '\n  (a) A', '\nb) B'],
        ['List:', '\n- one', '\n* two.', '\n• three', '\n**3.** four'],
        ['Item', '\n1.\n  One.', '\n---\nTwo'],
        [
            'See J. A. Smith et al. 1999.',
            ' And 3, 1, etc.',
            ' So it is.',
        ],
        ['It is due at 5 p.m.', ' Then sleep.'],
        ['Now (n-1)! because 9! is 9 times 8!', ' Then 7!', '\nis less.'],
        ['One.', ' Last', '\nTwo\n3.'],
        ['So 1, 2, ... , 9 and 1, . . . , 5 hold.', ' Hmm... well.'],
        ['Now 5! = 120 and n! * 2 or (n)! / 3.', ' Wow!', ' Yes.'],
        ['Thus', '\n\\[\nx = 1. \\\\[2pt]\n\ny\n\\]', '\nholds.', ' So.'],
        ['It is $$ x = 2.\n y $$ here.', ' So it is $$ z'],
        ['We', '\n\\begin{align}\na. \n\\begin{b}\nc\n\\end{b}\n\\end{align}'],
        ['If \\(n! = 6. \\) and $a. b$ then.', ' So.'],
        ['It costs $5.', ' Then $6.', ' So.'],
        ['A stray \\[ opens.', ' It shuts nothing.', '\nNor does $$.', ' So.'],
        ['Two \\[ open.', ' Then \\[ a.\nb \\] shuts.', ' So.'],
        ['$$ a', '\n\nIt.', ' c $$'],
        ['A \\end{b} and \\begin{c} and.', ' \\begin{b} d.\n \\end{b}.', ' So'],
        ['...'],
        ['1.'],
        ['What?!', ' No?', ' yes'],
    ],
)
def test_sentence_by_hand(pieces):
  assert sentences.pieces(''.join(pieces), 'sentence') == pieces


def test_prefixes():
  text = ' One. Two.\n\nThree  '
  cuts = sentences.cuts(text, 'sentence')
  assert cuts == [5, 10, 17]
  assert [text[:cut] for cut in cuts] == [
      ' One.',
      ' One. Two.',
      ' One. Two.\n\nThree',
  ]


@pytest.mark.parametrize(
    'unit',
    ['A word. ', '. ', '-\n', '\\[', '$$ ', '$', '\\begin{a}', '\\end{a}']
    + [
        '\\begin{',
        '\\(',
        ' ',
        '\n',
        '.',
        ')',
        '1. ',
        '# ',
        'a',
        '\n ',
        '$$\n\n',
    ],
)
@pytest.mark.parametrize('splitter', sentences.SPLITTERS)
def test_linear_time(unit, splitter):
  text = unit * (60_000 // len(unit))
  start = time.process_time()
  sentences.cuts(text, splitter)
  # 0.2 s; an algorithm that takes the square of 60,000 needs minutes.
  assert time.process_time() - start < 10


def test_unknown_splitter():
  with pytest.raises(
      errors.ConfigError, match=r"'words': no such .*'reference', 'sentence'"
  ):
    sentences.pieces('A.', 'words')
