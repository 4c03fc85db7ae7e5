// Package bridge builds the parts of one node's bridge, wires them, starts them and joins them.
//
// A config.Config comes in; capture, stream and apply are made of it and run until the context ends. It
// keeps invariant 6 (what is away is waited for outside of any transaction) by building everything anew
// when the database or the broker was lost. It is the only package that knows all others; it contains no
// SQL of the data path and no protocol.
//
// Goroutines: one per part (capture, publisher, applier, one reader per peer, retention, the watch over
// tables, the drain), all in one errgroup per life; when one ends, all end, and a new life begins after a
// pause. When the context ends, drain.go ends them in the order of the data. The NATS server inside the
// bridge and the server of status live across lives.
//
// When PostgreSQL, the broker or a peer is away, Run waits and tries again; status says what it waits
// for. A wrong configuration, a missing privilege and a second bridge for the same node end it.
//
// Begin with bridge.go, then life.go.
package bridge
