package apply

import (
	"time"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
)

// changed notes that a row's conflicts must be worked out anew. That waits until somebody asks: a hot row has many writes.
func (s *Shadow) changed(r *shadowRow) {
	if !r.unmet {
		r.unmet, s.unmet = true, append(s.unmet, r)
	}
}

// meetAll works out the conflicts of all rows that have changed.
func (s *Shadow) meetAll() {
	for _, r := range s.unmet {
		s.meet(r)
		r.unmet = false
	}
	s.unmet = s.unmet[:0]
}

// meet lets the others' writes of a row meet what was written here, in the order in which they came.
func (s *Shadow) meet(r *shadowRow) {
	for _, m := range r.met {
		s.count(m, ^uint64(0))
	}
	r.met = r.met[:0]
	local := r.own
	if r.table.emptied.seq > local.seq {
		local = r.table.emptied
	}
	var t *shadowTxn
	var part uint32
	mine, lost := false, false
	writes, truncates := r.theirs, r.table.truncates
	for len(writes)+len(truncates) > 0 {
		var w shadowWrite
		if len(writes) == 0 || len(truncates) > 0 && truncates[0].before(writes[0]) {
			w, truncates = truncates[0], truncates[1:]
		} else {
			w, writes = writes[0], writes[1:]
		}
		if w.t != t {
			t, part, mine, lost = w.t, w.part, false, false
		}
		if w.part != part { // what the transaction does behind a TRUNCATE may meet a row again on which it had lost
			part, lost = w.part, false
		}
		if lost {
			continue
		}
		gone := shadowVersion{seq: t.seq, stamp: t.stamp, origin: t.origin, gone: true}
		if w.kind == conflict.Truncate && (local.seq == 0 || local.gone) { // there is no row that it could meet
			if local.seq == 0 || s.version(gone).Later(s.version(local)) {
				local, mine = gone, true
			}
			continue
		}
		d := conflict.Decision{RemoteWins: true}
		if !mine {
			d = s.policy(s.question(w, local))
		}
		if d.Conflict {
			m := shadowMet{ShadowKind{d.Kind, localWins}, t, local}
			if d.RemoteWins {
				m.kind.Outcome = remoteWins
			}
			r.met = append(r.met, m)
			s.count(m, 1)
		}
		if mine = d.RemoteWins; mine {
			local = gone
			local.gone = w.kind == conflict.Delete || w.kind == conflict.Truncate
		}
		lost = !mine && w.kind != conflict.Truncate
	}
}

// question is what the policy is asked.
func (s *Shadow) question(w shadowWrite, local shadowVersion) conflict.Case {
	c := conflict.Case{Write: w.kind, Remote: s.version(shadowVersion{stamp: w.t.stamp, origin: w.t.origin})}
	if local.seq == 0 {
		c.Local.Absent = true // or as old as the slot, which is as good
		return c
	}
	c.Local = conflict.Local{Version: s.version(local), Deleted: local.gone}
	c.Seen = local.origin == w.t.origin || w.t.up.Covers(c.Local.Version.Origin, local.seq)
	return c
}

func (s *Shadow) version(v shadowVersion) origin.Version {
	return origin.Version{Stamp: v.stamp, Origin: s.origins[v.origin]}
}

// apart is the time between the two versions of a conflict.
func (m shadowMet) apart() time.Duration { return m.t.stamp.Time().Sub(m.local.stamp.Time()).Abs() }

// count adds n to what is counted for a conflict.
func (s *Shadow) count(m shadowMet, n uint64) {
	c := s.kinds[m.kind]
	c.all += n
	if m.apart() < shadowClose {
		c.close += n
	}
	s.kinds[m.kind] = c
}
