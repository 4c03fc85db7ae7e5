package stream

import "github.com/nats-io/nats.go"

// What bridges tell each other of themselves goes through brokers without being stored: on HelloSubject of its own
// broker a bridge says that it lives and what it knows, to whoever listens; on KnockSubject of another node's broker it asks
// that node to listen, too.

// HelloSubject is where a node's bridge says that it lives, at its own broker.
func HelloSubject(cluster, node string) string { return "pgb_hello." + cluster + "." + node }

// KnockSubject is where others leave their names at a node's broker, for its bridge to listen to them.
func KnockSubject(cluster, node string) string { return "pgb_knock." + cluster + "." + node }

// Say publishes on a subject that is not stored. It waits for nothing; an error means that the connection is closed or that
// too much waits to be sent.
func Say(nc *nats.Conn, subject string, data []byte) error { return nc.Publish(subject, data) }

// Listen calls fn with what is said on a subject that is not stored, one after the other, until the returned function is
// called or the connection is closed. What comes while fn is slow may be lost.
func Listen(nc *nats.Conn, subject string, fn func(data []byte)) (stop func(), err error) {
	s, err := nc.Subscribe(subject, func(m *nats.Msg) { fn(m.Data) })
	if err != nil {
		return nil, err
	}
	_ = s.SetPendingLimits(64, 1<<20)
	return func() { _ = s.Unsubscribe() }, nil
}
