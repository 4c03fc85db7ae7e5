package apply

import (
	"context"
	"fmt"

	"github.com/pgbridge/pgbridge/origin"
)

// A node that joins copies rows (copyout.go, copyin.go) and then takes in a delta (delta.go) of what came meanwhile. What tells the
// two apart is a vector, *since*: what the donor had when the join began, once all other nodes have told that they have it, too. A
// row whose last writer it covers is old: whatever is still to come to anybody was written by somebody who had seen it, so that its
// exact version is of no use to the new node, and it can be written there as if it had always been there. Such a row is the latest of
// all writes of its key as long as none comes that is behind since (PROOF.md section 7). So it does not matter when it is copied, nor
// in which snapshot, nor how often that is interrupted: each old row is copied that is still the latest, all else comes with the
// delta, and so do the deletes of what was copied and has gone. What the joining node reads from the streams begins behind the delta,
// where all had seen since.
//
// Nobody may forget meanwhile what decides about the new node's late transactions: so all nodes know of it before.

// NotYet means that something must be waited for.
type NotYet struct{ Reason string }

// Error gives the reason.
func (e *NotYet) Error() string { return e.Reason }

// Knows returns nil when all nodes but the joining one are known to have since, and nothing here may yet go that is in it: since is
// what this node has Seen, and passed up to where capture had read by then. The error is a NotYet if that may come.
func (a *Applier) Knows(joiner string, since origin.Vector, passed uint64) error {
	wal := a.wal.Load()
	if wal == nil {
		return &NotYet{"the bridge does not run yet"}
	}
	if a.absence.mayTakeBackBelow(passed) { // a row would be copied that a local delete has outlived (PROOF.md R19)
		return &NotYet{"local deletes wait for their turn"}
	}
	_, low := (*wal).Vectors()
	for _, e := range since {
		if e.Origin != a.own && !low.Covers(e.Origin, e.Seq) {
			return &NotYet{fmt.Sprintf("transaction %d of %s is not on this node's disk yet", e.Seq, e.Origin)}
		}
		if p := a.heard.lacking(e, joiner); p != "" {
			return &NotYet{fmt.Sprintf("node %s has not told yet that it has transaction %d of %s; it must run and be reached", p, e.Seq, e.Origin)}
		}
	}
	return nil
}

// lacking is a node but one that has not told of having seen e; empty: all have.
func (h *hearsay) lacking(e origin.Entry, but string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, low := range h.low {
		if p == e.Origin || p.Node == but {
			continue
		}
		if parked, ok := h.parked[p]; ok && !parked.Covers(e.Origin, e.Seq) || !low.Covers(e.Origin, e.Seq) {
			return p.Node
		}
	}
	return ""
}

// Here is how far this node has come with another one's transactions, for those who decide whether that one may go.
type Here struct{ Applied, Received, Parked uint64 }

// HereOf returns how far the transactions of a node have come here, once what is applied is on disk.
func (a *Applier) HereOf(ctx context.Context, node string) (h Here, err error) {
	if _, err := a.markers.flush(ctx); err != nil {
		return h, err
	}
	for _, s := range a.Status() {
		if s.Origin.Node == node {
			h = Here{Applied: s.Seq, Received: max(s.Received, s.Seq), Parked: s.Parked}
		}
	}
	return h, nil
}
