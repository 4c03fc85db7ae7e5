// Package stream owns the way of frames through NATS JetStream.
//
// From capture come frames to publish; to apply go the frames of other nodes, in order. The package
// keeps invariant 1 (nothing lost, nothing twice) from the ack of a frame to its delivery, and invariant
// 8: what waits is bounded in frames and bytes. It does not know what a frame's body means, and nothing
// of PostgreSQL; positions are kept by whoever applies.
//
// One node writes one stream, PGB_<cluster>_<node>, of which a message is a frame and the stream
// sequence its number. A [Publisher] gives each frame its sequence before it sends it, with
// Nats-Expected-Last-Sequence, so that a frame is stored there or nowhere; after any failure it asks the
// leader what is stored and goes on from there. A second writer is shut out by [Publisher.Fence]. A
// [Reader] checks each sequence itself and names what is wrong: [ErrGap], [ErrStreamChanged].
//
// Goroutines: none of its own but those of the NATS client, of the [Server] inside the bridge, whose
// Close joins them, and of tunnels, which end with either of their ends; shutting a door joins those on its side. [Publisher.Run] and [Reader.Run] block in the goroutine of their caller.
//
// When the broker is away, Publish goes on until the window is full and then waits; Run reconnects and
// settles what was in flight. A full stream is the same, seen in State. A peer that is away, or whose
// stream does not exist yet, is waited for. A stream that was lost, rewound or taken over ends Run with
// an error that says so: the bridge decides.
//
// A node that nobody can dial is reached through a door at a broker which it has dialled itself (door.go); whoever reads from there
// does not notice.
//
// Begin with publisher.go, then recover.go, fence.go and reader.go. Sources: NATS ADR-1 (JetStream API),
// ADR-13 (pull requests), ADR-31 (direct get); nats-server 2.15, server/stream.go and consumer.go.
package stream
