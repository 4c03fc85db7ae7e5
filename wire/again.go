package wire

import (
	"errors"
	"io"
)

// Reading that begins anew brings frames again, and those from the oldest open run on are handed on again. What they say of the
// origin's state is old then, and their transactions were handed on: as they are they would let a stream's numbers fall, in which
// places are found by halving.

// GoOn makes f, which comes behind a frame with header h, say nothing that is older, and hold no transaction again. What its author has
// signed is kept beside it. The error wraps ErrCorrupt.
func (f *Frame) GoOn(h *Header) error {
	if f.FirstSeq != 0 && f.FirstSeq <= h.LastSeq {
		f.Keep()
		if err := f.cut(h.LastSeq); err != nil {
			return err
		}
		if f.FirstSeq = h.LastSeq + 1; f.FirstSeq > f.LastSeq { // none is left
			f.FirstSeq, f.FirstCommitTime = 0, 0
		}
	}
	same := f.SystemID == h.SystemID && f.Timeline == h.Timeline
	if f.LastSeq > h.LastSeq || f.LastSeq == h.LastSeq && !(same && f.ResumeLSN < h.ResumeLSN) {
		return nil
	}
	f.Keep()
	f.FirstSeq, f.LastSeq, f.LastStamp = 0, h.LastSeq, h.LastStamp
	f.FirstCommitTime, f.LastCommitTime = 0, h.LastCommitTime
	f.Up, f.Low, f.Mark = h.Up, h.Low, h.Mark
	f.ResumeLSN, f.SystemID, f.Timeline, f.Standbys = h.ResumeLSN, h.SystemID, h.Timeline, h.Standbys
	return nil
}

// cut takes the transactions up to seq out of the body.
func (f *Frame) cut(seq uint64) error {
	body, err := unsent(f.Body, seq)
	if err != nil {
		return err
	}
	if f.Signature != nil && f.whole == nil {
		f.whole = f.Body
	}
	f.Body = body
	return nil
}

// unsent returns a frame's records without the transactions up to seq. The end of a run that is one of them is its abort.
func unsent(body []byte, seq uint64) (kept []byte, err error) {
	recs := NewRecords(body)
	skip := false
	for {
		rest := recs.Rest()
		rec, err := recs.Next()
		if errors.Is(err, io.EOF) {
			return kept, nil
		}
		if err != nil {
			return nil, err
		}
		raw := rest[:len(rest)-len(recs.Rest())]
		switch rec.Kind {
		case KindBegin:
			b, err := ParseBegin(rec.Payload)
			if err != nil {
				return nil, err
			}
			skip = b.Seq <= seq
		case KindLargeCommit:
			c, err := ParseLargeCommit(rec.Payload)
			if err != nil {
				return nil, err
			}
			if c.Seq <= seq {
				raw = AppendNumber(nil, KindRunAbort, c.Run)
			}
		}
		if !skip || describes(rec) { // which may serve later ones
			kept = append(kept, raw...)
		}
		skip = skip && rec.Kind != KindCommit
	}
}

// describes reports whether a record describes a relation.
func describes(rec Record) bool {
	if rec.Kind != KindSealed {
		return rec.Kind == KindRelation
	}
	part, err := SealedPartOf(rec.Payload)
	return err == nil && part == SealedRelation
}
