package apply

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
)

// ShadowReport is what a shadow would have met by now. Its JSON is part of that of status.
type ShadowReport struct {
	Since time.Time `json:"since"` // when the comparison began; all that the slot has kept is in it
	// Read are the transactions that were compared, by node, this one's too.
	Read []ShadowOrigin `json:"read"`
	// Conflicts counts what would be recorded if this node applied all of it now.
	Conflicts []ShadowConflicts `json:"conflicts"`
	// Rows are some of those that would meet something.
	Rows []ShadowRow `json:"rows"`
	// Undecided says what could not be compared, and why.
	Undecided []string `json:"undecided"`
	// Full: no more is remembered, and what came since then is not in the report.
	Full bool `json:"full"`
}

// ShadowOrigin is how far a node's transactions were compared.
type ShadowOrigin struct {
	Origin string    `json:"origin"`
	Seq    uint64    `json:"seq"`
	Stamp  time.Time `json:"stamp"`
}

// ShadowConflicts counts conflicts of a kind.
type ShadowConflicts struct {
	Kind    conflict.Kind `json:"kind"`
	Outcome string        `json:"outcome"` // "remote wins" or "local wins"
	Count   uint64        `json:"count"`
	// Close are those of them whose two writes are less than a second apart. Of the others the later author would most often
	// have seen the earlier write, if changes had been replicated at the time.
	Close uint64 `json:"close"`
}

// ShadowRow is a row that would meet something.
type ShadowRow struct {
	Table        string        `json:"table"`
	Key          string        `json:"key"` // as a JSON object; empty if the server has none
	Kind         conflict.Kind `json:"kind"`
	Outcome      string        `json:"outcome"`
	RemoteOrigin string        `json:"remote_origin"`
	RemoteSeq    uint64        `json:"remote_seq"`
	RemoteStamp  time.Time     `json:"remote_stamp"`
	LocalOrigin  string        `json:"local_origin"`
	LocalStamp   time.Time     `json:"local_stamp"`
}

// Total is how many conflicts there would be.
func (r *ShadowReport) Total() (n uint64) {
	for _, c := range r.Conflicts {
		n += c.Count
	}
	return n
}

// Report returns what would be met by now.
func (s *Shadow) Report() *ShadowReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meetAll()
	r := &ShadowReport{Since: s.since.UTC(), Full: s.full, Read: []ShadowOrigin{}, Conflicts: []ShadowConflicts{}, Rows: []ShadowRow{}, Undecided: []string{}}
	for _, e := range slices.SortedFunc(maps.Values(s.reached), func(a, b origin.Entry) int { return cmp.Compare(a.Origin.Node, b.Origin.Node) }) {
		r.Read = append(r.Read, ShadowOrigin{e.Origin.String(), e.Seq, e.Stamp.Time().UTC()})
	}
	for kind, n := range s.kinds {
		if n.all > 0 {
			r.Conflicts = append(r.Conflicts, ShadowConflicts{kind.Kind, kind.Outcome, n.all, n.close})
		}
	}
	slices.SortFunc(r.Conflicts, func(a, b ShadowConflicts) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Outcome, b.Outcome))
	})
	for _, row := range s.shown {
		for _, m := range row.met {
			r.Rows = append(r.Rows, ShadowRow{row.table.name.String(), row.key, m.kind.Kind, m.kind.Outcome,
				s.origins[m.t.origin].String(), m.t.seq, m.t.stamp.Time().UTC(), s.origins[m.local.origin].String(), m.local.stamp.Time().UTC()})
		}
	}
	for _, t := range slices.SortedFunc(maps.Values(s.tables), func(a, b *shadowTable) int { return cmp.Compare(a.name.String(), b.name.String()) }) {
		if t.skipped > 0 {
			r.Undecided = append(r.Undecided, fmt.Sprintf("%d writes of table %s: %s", t.skipped, t.name, t.why))
		}
	}
	return r
}
