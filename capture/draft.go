package capture

import (
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// draft is the frame under construction. Its body is reused: a Publisher is done with it when Publish
// returns.
type draft struct {
	body   []byte
	target int    // size at which the frame is closed
	serial uint64 // of this frame, from 1: relations remember the one that declares them
	deps   uint64 // generation of the dependencies that its last V record holds, 0 without one
	worth  bool   // it holds a whole transaction, a chunk, the end of a run, or news of what lost
	waits  bool   // it holds what readers take from the stream only: parts of runs, and what is no transaction
	since  time.Time

	shown   int // bytes of the body that went ahead
	shownAt time.Time

	declared []declaration
	firstSeq uint64 // 0 if no transaction ends in it
	first    origin.Stamp
	last     origin.Stamp
}

// declaration is an R record and its place in the body.
type declaration struct {
	rel *relation
	at  int
}

// begin empties d for the next frame.
func (d *draft) begin(target int) {
	*d = draft{body: d.body[:0], target: target, serial: d.serial + 1, declared: d.declared[:0]}
}

// declare puts the relation's R record into the frame unless it is there.
func (d *draft) declare(r *relation) {
	if r.declared == d.serial {
		return
	}
	r.declared = d.serial
	d.declared = append(d.declared, declaration{r, len(d.body)})
	at := len(d.body)
	d.body = r.sealed(wire.AppendRelation(d.body, &r.Relation), at, wire.SealedRelation)
}

// truncate takes everything from at on back out. What is left of a frame without anything worth sending
// goes too.
func (d *draft) truncate(at int) {
	if !d.worth {
		at, d.deps = 0, 0
	}
	d.body = d.body[:at]
	n := len(d.declared)
	for ; n > 0 && d.declared[n-1].at >= at; n-- {
		d.declared[n-1].rel.declared = 0
	}
	d.declared = d.declared[:n]
}

// ends notes that a transaction ends in the frame.
func (d *draft) ends(seq uint64, commitTime origin.Stamp) {
	if d.firstSeq == 0 {
		d.firstSeq, d.first = seq, commitTime
	}
	d.last = commitTime
	d.worth = true
}
