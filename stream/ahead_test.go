package stream

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/wire"
)

// seen is a Reader with Ahead that tells all that it is given: ahead with a plus before the number.
type seen struct {
	t    *testing.T
	got  chan string
	end  func() error // of reading
	nc   *nats.Conn
	read *Reader
}

func readAhead(t *testing.T, s *natstest.Server, from uint64, v *wire.Verifier) *seen {
	t.Helper()
	x := &seen{t: t, got: make(chan string, 100), nc: s.Connect(t)}
	var err error
	x.read, err = NewReader(x.nc, ReaderOptions{Cluster: testCluster, Sender: testNode, Ahead: true, Verifier: v, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	x.end = run(t, func(ctx context.Context) error {
		return x.read.Run(ctx, from, func(_ context.Context, m Message) error {
			switch {
			case m.Frame.Fence:
			case m.Ahead:
				x.got <- fmt.Sprintf("+%d from %d", number(m.Frame), m.Seq)
			default:
				x.got <- fmt.Sprint(number(m.Frame))
			}
			return nil
		})
	})
	awaitState(t, x.read.State, StateReading)
	return x
}

// want waits for just these.
func (x *seen) want(all ...string) {
	x.t.Helper()
	for _, w := range all {
		select {
		case g := <-x.got:
			if g != w {
				x.t.Fatalf("got %s, want %s", g, w)
			}
		case <-testContext(x.t).Done():
			x.t.Fatalf("%s does not come", w)
		}
	}
}

// show has a frame go ahead, and waits until the reader's connection must have it.
func (x *seen) show(p *Publisher, f *wire.Frame, whole bool) {
	x.t.Helper()
	p.Ahead(f, whole)
	x.flush(p.api.nc)
}

func (x *seen) flush(sender *nats.Conn) {
	x.t.Helper()
	for _, nc := range []*nats.Conn{sender, x.nc} {
		if err := nc.FlushWithContext(testContext(x.t)); err != nil {
			x.t.Fatal(err)
		}
	}
}

// TestAhead: a reader has a frame, or a part of it, before anybody has stored it, and has it again from the stream.
func TestAhead(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	x := readAhead(t, s, 1, nil)
	first := publish(t, p, numbered(1, 1, 0))
	x.want("1")
	place := fmt.Sprintf(" from %d", first+1)

	x.show(p, numbered(1, 2, 0), false)
	x.want("+2" + place)
	x.show(p, numbered(1, 3, 16), false) // more of the same frame
	x.want("+3" + place)
	x.show(p, numbered(1, 4, 24), true)
	x.want("+4" + place)
	x.show(p, numbered(1, 5, 0), true) // not behind what is whole
	publish(t, p, numbered(1, 4, 24))
	x.want("4")
	x.show(p, numbered(1, 5, 0), true)
	x.want(fmt.Sprintf("+5 from %d", first+2))
	publish(t, p, numbered(1, 5, 0))
	x.want("5")
	x.show(p, numbered(1, 6, 16), false)
	x.show(p, numbered(1, 6, 16), true) // no more has come: it is not sent again
	x.want(fmt.Sprintf("+6 from %d", first+3))
	if n := x.read.Stats().Aheads; n != 5 {
		t.Errorf("%d messages counted", n)
	}
}

// TestForgedFramesAreNotDelivered: what its author has not signed is not delivered, ahead of the stream or from it.
func TestForgedFramesAreNotDelivered(t *testing.T) {
	s := natstest.New(t)
	seed := bytes.Repeat([]byte{7}, wire.SignSeedBytes)
	signer, err := wire.NewSigner(seed)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := wire.NewVerifier(map[string][]byte{testNode: ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)}, true)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{Signer: signer})
	x := readAhead(t, s, 1, verifier)
	first := publish(t, p, numbered(1, 1, 0))
	x.want("1")
	x.show(p, numbered(1, 2, 0), false)
	x.want(fmt.Sprintf("+2 from %d", first+1))

	sender := s.Connect(t)
	forged, err := (&wire.Encoder{}).Append(nil, numbered(1, 666, 0))
	if err != nil {
		t.Fatal(err)
	}
	m := &nats.Msg{Subject: AheadSubject(testCluster, testNode, testNode), Data: forged, Header: nats.Header{jetstream.ExpectedLastSeqHeader: {fmt.Sprint(first)}}}
	if err := sender.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
	x.flush(sender)
	x.show(p, numbered(1, 3, 16), false)
	x.want(fmt.Sprintf("+3 from %d", first+1))
	publish(t, p, numbered(1, 3, 16))
	x.want("3")

	m.Subject, m.Header = Subject(testCluster, testNode, testNode), nil
	js, err := jetstream.New(sender)
	if err == nil {
		_, err = js.PublishMsg(testContext(t), m)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := x.end(); !errors.Is(err, wire.ErrSignature) || !strings.Contains(err.Error(), fmt.Sprintf("frame %d of stream", first+2)) {
		t.Errorf("reading ends with %v", err)
	}
	if len(x.got) > 0 {
		t.Errorf("delivered: %s", <-x.got)
	}
}

// TestAheadOfWhatIsNotStored: reading goes on through frames that nothing has stored, from one writer only.
func TestAheadOfWhatIsNotStored(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	x := readAhead(t, s, 1, nil)
	first := publish(t, p, numbered(1, 1, 0))
	x.want("1")
	sender := s.Connect(t)
	note := func(header string, size, seq uint64) {
		t.Helper()
		m := &nats.Msg{Subject: AheadSubject(testCluster, testNode, testNode), Header: nats.Header{
			jetstream.ExpectedLastSeqHeader: {fmt.Sprint(seq - 1)}, header: {fmt.Sprint(size)}}}
		if err := sender.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	send := func(epoch, n, seq uint64, whole bool) {
		t.Helper()
		data, err := (&wire.Encoder{}).Append(nil, numbered(epoch, n, 0))
		if err != nil {
			t.Fatal(err)
		}
		m := &nats.Msg{Subject: AheadSubject(testCluster, testNode, testNode), Data: data, Header: nats.Header{
			jetstream.ExpectedLastSeqHeader: {fmt.Sprint(seq - 1)}}}
		if !whole {
			m.Header[partHeader] = []string{"8"}
		}
		if err := sender.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
		x.flush(sender)
	}
	place := fmt.Sprintf(" from %d", first+1)
	send(1, 2, first+1, true)
	send(1, 3, first+2, false)
	send(1, 4, first+3, true) // first+2 is not whole
	note(wholeHeader, 9, first+2)
	note(wholeHeader, 8, first+1)
	send(1, 4, first+3, true) // nor now
	send(1, 5, first+2, false)
	note(wholeHeader, 8, first+2)
	send(1, 6, first+2, true) // is whole already
	send(2, 7, first+3, true) // of a writer that has not fenced
	send(1, 8, first+3, true)
	x.want("+2"+place, "+3"+place, "+5"+place, "+8"+place)
	for _, bad := range []*nats.Msg{
		{Subject: AheadSubject(testCluster, testNode, testNode), Data: []byte("no frame"), Header: nats.Header{jetstream.ExpectedLastSeqHeader: {fmt.Sprint(first + 3)}}},
		{Subject: AheadSubject(testCluster, testNode, testNode), Data: []byte("no header")},
	} {
		if err := sender.PublishMsg(bad); err != nil {
			t.Fatal(err)
		}
	}
	x.flush(sender)

	// A new writer begins where the stream ends, and what the old one had shown counts no more.
	q, _ := running(t, s.Connect(t), 2, PublisherOptions{})
	fenced := q.Next()
	publish(t, q, numbered(2, 2, 0))
	x.want("2")
	send(1, 9, fenced+1, true)
	send(2, 3, fenced+1, true)
	x.want(fmt.Sprintf("+3 from %d", fenced+1))
	if state, cause := x.read.State(); state != StateReading {
		t.Errorf("state %s: %v", state, cause)
	}
}

// TestAheadWaitsForNothing: not for a broker that is away, nor for one that has not been fenced.
func TestAheadWaitsForNothing(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	p := open(t, nc, PublisherOptions{})
	p.Ahead(numbered(1, 1, 0), true)
	p, _ = running(t, s.Connect(t), 1, PublisherOptions{})
	x := readAhead(t, s, 1, nil)
	publish(t, p, numbered(1, 1, 0))
	x.want("1")
	s.Stop()
	awaitState(t, p.State, StateRecovering)
	p.Ahead(numbered(1, 2, 0), true)
	s.Start(t)
	awaitState(t, p.State, StatePublishing)
	publish(t, p, numbered(1, 3, 0))
	x.want("3")
}

// TestAheadIsNotStored: nobody keeps what goes ahead.
func TestAheadIsNotStored(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	before, err := p.Info(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	p.Ahead(numbered(1, 1, 0), true)
	publish(t, p, numbered(1, 1, 0)) // behind it on the same connection
	await(t, p, before.Last+1)
	if after, err := p.Info(testContext(t)); err != nil || after.Frames != before.Frames+1 {
		t.Errorf("%d frames, then %d, %v", before.Frames, after.Frames, err)
	}
}

// TestAheadWithoutThePermission: a broker that does not let us is asked once, and all else goes on.
func TestAheadWithoutThePermission(t *testing.T) {
	s := natstest.NewWith(t, natstest.Options{DenyPublish: "pgb_ahead.>"})
	var refused atomic.Int32
	nc := s.Connect(t, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			refused.Add(1)
		}
	}))
	p, _ := running(t, nc, 1, PublisherOptions{})
	x := readAhead(t, s, 1, nil)
	for n := uint64(1); n <= 10; n++ {
		p.Ahead(numbered(1, n, 0), true)
		x.flush(nc)
		publish(t, p, numbered(1, n, 0))
		x.want(fmt.Sprint(n))
	}
	if n := refused.Load(); n != 1 {
		t.Errorf("refused %d times", n)
	}
}
