// Package capture turns the local primary's WAL into frames: it reads one logical slot, tags each local
// transaction with seq, stamp and dependencies, and hands the frames to a [Publisher].
//
// In comes pgoutput's stream of one publication, in WAL order; out go wire.Frames to the Publisher, and
// local deletes to [Deletes]. The package keeps invariant 1 on the sending side (the slot is confirmed
// only behind durable frames), 3 (dependencies out of the WAL: PROOF.md R7, R8), 4 (what a bridge applied
// is dropped) and 8 (a transaction or a row of any size passes through in chunks). Seq, stamp and
// dependencies are pure functions of the WAL and of the stream's tail (R5, R6), so that decoding again
// gives the same. It does not know NATS, does not know how other nodes apply, and takes no lock.
//
// Goroutines, all joined by [Capture.Run], which is itself the one that walks, tags and packs: the
// receiver reads the socket into large buffers; the reporter answers the server, also while Publish waits;
// the catalog watches its own connection, over which it looks keys up and has the server hash some. They live as long as the
// connection to PostgreSQL and end with its socket.
//
// When PostgreSQL is away, Run connects again with growing pauses and goes on behind the last transaction
// that it told; [Capture.Status] says why it waits. When the broker is away, Publish waits, nothing more is
// read, the slot holds the WAL and the server keeps getting its replies. A slot that is lost, an origin
// that is not the bridge's, or a server that is older than the stream end Run with a [CheckError], since a
// person has to act.
//
// Begin with capture.go, then session.go (one connection), tag.go (transactions), run.go (large ones),
// pack.go (when a frame leaves), ledger.go (what the slot is told). Sources: PostgreSQL, "Streaming
// Replication Protocol" and "Logical Replication Message Formats"; walsender.c, pgoutput.c.
package capture
