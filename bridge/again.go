package bridge

import (
	"errors"
	"io"

	"github.com/pgbridge/pgbridge/wire"
)

// Reading that begins anew brings frames again, and those from the oldest open run on are handed on again. What they say of the
// origin's state is old then, and their transactions were handed on: as they are they would let a stream's numbers fall, in which
// places are found by halving.

// goOn makes f, which comes behind a frame with header h, say nothing that is older, and hold no transaction again.
func goOn(f *wire.Frame, h *wire.Header) error {
	if f.FirstSeq != 0 && f.FirstSeq <= h.LastSeq {
		body, err := unsent(f.Body, h.LastSeq)
		if err != nil {
			return err
		}
		if f.Body, f.FirstSeq = body, h.LastSeq+1; f.FirstSeq > f.LastSeq { // none is left
			f.FirstSeq, f.FirstCommitTime = 0, 0
		}
	}
	same := f.SystemID == h.SystemID && f.Timeline == h.Timeline
	if f.LastSeq > h.LastSeq || f.LastSeq == h.LastSeq && !(same && f.ResumeLSN < h.ResumeLSN) {
		return nil
	}
	f.FirstSeq, f.LastSeq, f.LastStamp = 0, h.LastSeq, h.LastStamp
	f.FirstCommitTime, f.LastCommitTime = 0, h.LastCommitTime
	f.Up, f.Low, f.Mark = h.Up, h.Low, h.Mark
	f.ResumeLSN, f.SystemID, f.Timeline, f.Standbys = h.ResumeLSN, h.SystemID, h.Timeline, h.Standbys
	return nil
}

// unsent returns a frame's records without the transactions up to seq. The end of a run that is one of them is its abort.
func unsent(body []byte, seq uint64) (kept []byte, err error) {
	recs := wire.NewRecords(body)
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
		case wire.KindBegin:
			b, err := wire.ParseBegin(rec.Payload)
			if err != nil {
				return nil, err
			}
			skip = b.Seq <= seq
		case wire.KindLargeCommit:
			c, err := wire.ParseLargeCommit(rec.Payload)
			if err != nil {
				return nil, err
			}
			if c.Seq <= seq {
				raw = wire.AppendNumber(nil, wire.KindRunAbort, c.Run)
			}
		}
		if !skip || describes(rec) { // which may serve later ones
			kept = append(kept, raw...)
		}
		skip = skip && rec.Kind != wire.KindCommit
	}
}

// describes reports whether a record describes a relation.
func describes(rec wire.Record) bool {
	if rec.Kind != wire.KindSealed {
		return rec.Kind == wire.KindRelation
	}
	part, err := wire.SealedPartOf(rec.Payload)
	return err == nil && part == wire.SealedRelation
}
