package stream

import (
	"context"
	"errors"
	"sync"

	"github.com/nats-io/nats.go"
)

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

// DeltaSubject is where a node's bridge, at its own broker, gives others what they lack and cannot read any more.
func DeltaSubject(cluster, node string) string { return "pgb_delta." + cluster + "." + node }

// CatalogSubject is where a node's bridge, at its own broker, tells others what its tables look like and what it has applied.
func CatalogSubject(cluster, node string) string { return "pgb_catalog." + cluster + "." + node }

// ErrNobody means that nobody answers on a subject.
var ErrNobody = errors.New("nobody answers; is its bridge running, and as new as this one?")

// Ask asks a question on a subject that is not stored and returns the answer; ErrNobody if there is nobody to give one.
func Ask(ctx context.Context, nc *nats.Conn, subject string, question []byte) ([]byte, error) {
	m, err := nc.RequestWithContext(ctx, subject, question)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, ErrNobody
	}
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}

// Answer answers what is asked on a subject with fn, one question after the other, until the returned function is called or the
// connection is closed. The asker is the node that will read the answer; empty: it cannot be told.
func Answer(nc *nats.Conn, subject string, fn func(asker string, question []byte) []byte) (stop func(), err error) {
	s, err := nc.Subscribe(subject, func(m *nats.Msg) { _ = m.Respond(fn(askerOf(m.Reply), m.Data)) }) // who has gone asks again
	if err != nil {
		return nil, err
	}
	return func() { _ = s.Unsubscribe() }, nil
}

// VerifySubject is where a node's bridge, at its own broker, answers those who compare its rows with others'.
func VerifySubject(cluster, node string) string { return "pgb_verify." + cluster + "." + node }

// Drop removes the stream in which a sender has an origin's frames, if there is one.
func Drop(ctx context.Context, nc *nats.Conn, cluster, sender, origin string) error {
	if err := newAPI(nc, "").remove(ctx, streamOf(cluster, sender, origin)); err != nil && !IsNoStream(err) {
		return err
	}
	return nil
}

// NodeSubject is where a node's bridge, at its own broker, answers those who join or leave.
func NodeSubject(cluster, node string) string { return "pgb_node." + cluster + "." + node }

// answersAtOnce bounds the questions that AnswerAside answers side by side.
const answersAtOnce = 16

// AnswerAside is Answer for questions that take their time: several are answered side by side. The returned function waits for those
// that are; fn must end with ctx.
func AnswerAside(ctx context.Context, nc *nats.Conn, subject string, fn func(ctx context.Context, asker string, question []byte) []byte) (stop func(), err error) {
	var answers sync.WaitGroup
	room := make(chan struct{}, answersAtOnce)
	s, err := nc.Subscribe(subject, func(m *nats.Msg) {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		answers.Go(func() {
			_ = m.Respond(fn(ctx, askerOf(m.Reply), m.Data)) // who has gone asks again
			<-room
		})
	})
	if err != nil {
		return nil, err
	}
	return func() {
		_ = s.Unsubscribe()
		answers.Wait()
	}, nil
}
