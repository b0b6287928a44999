# SPDX-License-Identifier: Apache-2.0
"""Batches of sequences of unequal lengths: the rows of a sequence in a call of its own against the same rows in a call with sequences of other lengths.
The cases "lengths" and "lengths, 2 threads" of compare_determinism.py."""

import numpy as np

from determinism_rows import Tokens
from rivals import Problem, Sequence


def companies(own):
    """Lengths of the others, beside a sequence of `own` tokens: all shorter, all longer, and both."""
    return (own // 27, 2 * own // 3), (own + 37, 5 * own // 4 + 3), (1, own + own // 4 - 17, own // 2 + 13)


class Batches:
    """Batches of one side, for one type and numbers of heads, around the first sequence of `rows`."""

    def __init__(self, rows, way, alone):
        """alone: what the call of a sequence alone is, as fields of Problem; None for a batch of one."""
        self.rows, self.way, self.alone = rows, way, alone
        self.others = {}  # by length and phase

    def problem(self, n_q, n_kv, **fields):
        return Problem("rows", self.rows.kind, *self.rows.heads, n_q, n_kv, **fields)

    def other(self, length, phase):
        """Of these lengths no two are equal, so that the length can be the seed."""
        if (length, phase) not in self.others:
            self.others[length, phase] = Tokens(100_000 + 10 * length, self.problem(1, length), length - 1 if phase == "decode" else 0)
        return self.others[length, phase]

    def own_length(self, phase):
        return self.rows.plan.tokens if phase == "decode" else self.rows.plan.prefill

    def part(self, tokens, phase, length):
        """What a call is given of these tokens: the last query of so many keys, or all queries."""
        first = length - 1 if phase == "decode" else 0
        k, v = (rows[:, :length] for rows in tokens.kv)
        return Sequence(*(tokens.queries(name, first, length) for name in ("q", "q_f32")), k, v)

    def of(self, phase, company=(), place=0, threads=1, own=None):
        """n_q × query heads × D of each sequence of a batch: those of these lengths, and at this place the rows' own (or another in its stead); None
        where the side cannot."""
        length = self.own_length(phase)
        members = [(self.other(n, phase), n) for n in company]
        members.insert(place, (own or self.rows.sequences[0], length))
        sequences = [self.part(tokens, phase, n) for tokens, n in members]
        most = max(s.n_kv for s in sequences)
        problem = self.problem(max(s.n_q for s in sequences), most, batch=len(sequences), **(self.alone or {}))
        side, scales = self.rows.side, self.rows.scales()
        side.take_threads(threads)
        found = side.attend_lengths(problem, sequences, scales, self.way)
        if found is not None:
            for rows, (tokens, n) in zip(found, members):
                if rows.shape[0] != (1 if phase == "decode" else n):
                    raise ValueError(f"{side.name}, {self.way}: {rows.shape[0]} query tokens of a sequence of {n}")
                if own is None:
                    self.rows.check(rows[-1], n - 1, tokens)
        return found

    def expected(self, phase, threads):
        """Rows of the sequence in a call of its own."""
        if self.alone is None:
            found = self.of(phase, threads=threads)
            return found and found[0]
        return getattr(self.rows, phase)(threads=threads, **self.alone)

    def check_errors(self, phase, found, expected):
        """That rows in the batch are about as exact as alone, so that none sees a padded key too many or lacks one of its own: in f32
        that costs thousands of times as much as another order of sums."""
        length = self.own_length(phase)
        for token in (length - 1,) if phase == "decode" else (0, length // 2, length - 1):
            at = token - length  # from the end
            errors, alone = (np.max(self.rows.errors(rows[at], token)[0]) for rows in (found, expected))
            if not errors <= 2 * alone + 1e-7:
                raise ValueError(f"{self.rows.side.name}, {self.rows.kind}, {self.way}, {phase}, token {token}: off by {errors:.3g}, by {alone:.3g} alone")

    def check_that_changes_show(self, phase, company, place, threads, found):
        """A change of one value of the sequence, as every batch is compared: it must show in all rows that see it, and in no other."""
        length = self.own_length(phase)
        token = length // 2
        changed = Tokens(0, self.problem(1, self.rows.plan.tokens), 0, raised=token)
        differs = np.any(self.of(phase, company, place, threads, changed)[place] != found, axis=-1)
        group = self.rows.heads[0] // self.rows.heads[1]
        sees = np.zeros_like(differs)  # values of the first KV head
        sees[token if phase == "prefill" else 0:, :group] = True
        if not np.array_equal(differs, sees):
            raise ValueError(f"{self.rows.side.name}, {self.rows.kind}, {self.way}, {phase}: of {np.sum(sees)} rows that see a changed value "
                             f"{np.sum(differs & sees)} differ, of others {np.sum(differs & ~sees)}")


def compare_lengths(rows, counts):
    """Every way in which the side can have such batches; on two threads, alone as in the batch, in the middle of it."""
    ways = rows.side.ways_of_lengths(Problem("rows", rows.kind, *rows.heads, 1, rows.plan.tokens))
    for way, alone in ways.items():
        batches = Batches(rows, way, alone)
        for phase in ("decode", "prefill"):
            for case, threads in (("lengths", 1), ("lengths, 2 threads", 2)):
                expected = batches.expected(phase, threads)
                if expected is None:
                    continue
                for company in companies(batches.own_length(phase)):
                    middle = (len(company) + 1) // 2
                    for place in (0, len(company), middle) if threads == 1 else (middle,):
                        found = batches.of(phase, company, place, threads)[place]
                        how = f"{way}, {place + 1} of {len(company) + 1}, others of {', '.join(map(str, company))}"
                        batches.check_errors(phase, found, expected)
                        counts.compare(case, phase, rows.heads, how, found, expected)
                batches.check_that_changes_show(phase, company, place, threads, found)
