// Package apply writes the other nodes' transactions into the local primary.
//
// Frames come in from stream, one [Applier.Feed] per origin; rows go out to PostgreSQL. It keeps
// invariant 1 on the receiving side (the position is a row that commits with the data: PROOF.md R1, R2),
// invariant 2 (guard, careful path, tombstones: R11 to R22), invariant 3 (the causal hold) and invariant
// 8 (runs are spooled to disk, queues are bounded in bytes). It asks conflict who wins and does not know
// why; it asks capture what the local WAL has said, through [WAL], and does not know how that is read.
// It does not know NATS.
//
// Goroutines, all joined by [Applier.Run]: one worker per origin, which owns that origin's queue and its
// connection with the replication origin; one receiver per worker, which reads that connection's answers
// while transactions are in the pipeline; the marker writer, which owns the connection without a
// replication origin; the take-back worker, which owns the connection of the bridge's own origin; the
// keeper, which owns the one in which rows come back that were kept out of their tables (quarantine.go); the
// sweeper, which forgets what is stable; the watch over parked transactions.
//
// When PostgreSQL is away, Run ends with an error and everything is built anew from the position rows.
// When one transaction cannot be applied (a table is missing here), its origin waits with a reason that
// [Applier.Status] shows, the others go on, and nothing is lost. One that the server refuses for its data is parked with
// those that depend on it (park.go), and its origin goes on. When a peer is away its queue is empty.
//
// The conflict history is also read, and losers are brought back, by [History], which is no part of an Applier: conflicts.go
// and undo.go.
//
// Begin with applier.go, then worker.go with batch.go (the optimistic path), guard.go, plan.go, bundle.go, careful.go with decide.go, and
// absence.go for what is known about rows that are not there, and resident.go for what of a transaction is for this node.
package apply
