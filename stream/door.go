package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// A node that nobody can dial has its stream in the server inside its bridge, as others do. Its bridge holds a door open at the
// brokers that it dials itself: whoever is there and wants to reach that server asks at the door, and gets a tunnel (tunnel.go)
// through the broker. What goes through it is NATS's own protocol, as over TCP, so that readers, hellos and whatever else is told
// between nodes need not know of it.

// DoorSubject is where a node that nobody can dial is asked for tunnels by a neighbour, at that one's broker: several may have the same.
func DoorSubject(cluster, node, neighbour string) string {
	return "pgb_dial." + cluster + "." + node + "." + neighbour
}

// doorLimit bounds the tunnels through one door. A neighbour needs one for each node whose transactions it reads from there, and some.
const doorLimit = 256

// tunnelOpen is the answer of a door that has opened a tunnel; any other one says why it has not.
const tunnelOpen = "open"

// ErrNotHere means that a node which dials out only is not connected to the broker at which it was asked for.
var ErrNotHere = errors.New("it dials out only, and is not connected here")

// door is one open door.
type door struct {
	nc     *nats.Conn
	at     string // its subject
	server func() (net.Conn, error)
	log    *slog.Logger

	status chan nats.Status

	mu      sync.Mutex // guards what follows
	tunnels map[*tunnel]struct{}
	closed  bool
	wg      sync.WaitGroup
}

// OpenDoor lets a neighbour reach a node's server, to which dial opens connections, by that neighbour's broker, which nc leads to, until
// the returned function is called. That one waits until all tunnels have ended.
func OpenDoor(nc *nats.Conn, cluster, node, neighbour string, dial func() (net.Conn, error), log *slog.Logger) (shut func(), err error) {
	d := &door{nc: nc, at: DoorSubject(cluster, node, neighbour), server: dial, log: log, tunnels: map[*tunnel]struct{}{}}
	s, err := nc.Subscribe(d.at, d.knock)
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", d.at, err)
	}
	d.status = nc.StatusChanged(nats.CONNECTED)
	if nc.IsConnected() {
		d.say()
	}
	d.wg.Go(func() {
		for range d.status {
			d.say()
		}
	})
	return func() {
		_ = s.Unsubscribe() // the connection may be closed
		nc.RemoveStatusListener(d.status)
		d.mu.Lock()
		d.closed = true
		for t := range d.tunnels {
			t.close()
		}
		d.mu.Unlock()
		d.wg.Wait()
	}, nil
}

// knock opens a tunnel under the name that the message holds.
func (d *door) knock(m *nats.Msg) {
	name := string(m.Data)
	answer := tunnelOpen
	if err := d.open(name); err != nil {
		answer = err.Error()
		d.log.Warn("tunnel is not opened", "subject", d.at, "err", answer)
	}
	_ = m.Respond([]byte(answer)) // who has gone asks again
}

func (d *door) open(name string) error {
	if name == "" || strings.ContainsAny(name, " .*>\t\r\n") {
		return fmt.Errorf("tunnel %q has no name for a subject", name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return errors.New("the door is being shut")
	case len(d.tunnels) >= doorLimit:
		return fmt.Errorf("%d tunnels are open, which is the most", doorLimit)
	}
	conn, err := d.server()
	if err != nil {
		return err
	}
	t, err := newTunnel(d.nc, conn, tunnelSubject(d.at, name, inward), tunnelSubject(d.at, name, outward))
	if err != nil {
		conn.Close()
		return err
	}
	d.tunnels[t] = struct{}{}
	d.wg.Go(func() {
		t.run()
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.tunnels, t)
	})
	return nil
}

// say tells the neighbour that the door is open: whatever it dialled before the broker was there is dead, which nobody could tell it
// then. It may have dialled since, and does so again.
func (d *door) say() { _ = d.nc.Publish(openedSubject(d.at), nil) }

// The directions of a tunnel, as its subjects end: to the server behind the door, and from there.
const (
	inward  = "in"
	outward = "out"
)

// openedSubject is where a door says that it was opened.
func openedSubject(door string) string { return door + ".opened" }

func tunnelSubject(door, name, direction string) string { return door + "." + name + "." + direction }

// Visitor dials a node's server through the door that it holds open for Own at the broker of Conn. It is a nats.CustomDialer.
type Visitor struct {
	Conn               *nats.Conn // must outlive what it dials
	Cluster, Node, Own string
}

// Dial opens a tunnel; ErrNotHere if there is no door. Network and address count for nothing.
func (v *Visitor) Dial(_, _ string) (net.Conn, error) {
	at, name := DoorSubject(v.Cluster, v.Node, v.Own), nuid.Next()
	near, far := net.Pipe()
	t, err := newTunnel(v.Conn, far, tunnelSubject(at, name, outward), tunnelSubject(at, name, inward))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	opened, err := v.Conn.Subscribe(openedSubject(at), func(*nats.Msg) { t.close() })
	var m *nats.Msg
	if err == nil {
		m, err = v.Conn.RequestWithContext(ctx, at, []byte(name))
	}
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		err = fmt.Errorf("node %s: %w", v.Node, ErrNotHere)
	case err != nil:
		err = fmt.Errorf("ask node %s for a tunnel: %w", v.Node, newAPI(v.Conn, "").explain(at, err))
	case string(m.Data) != tunnelOpen:
		err = fmt.Errorf("node %s opens no tunnel: %s", v.Node, m.Data)
	}
	run := func() {
		t.run()
		if opened != nil {
			_ = opened.Unsubscribe()
		}
	}
	if err != nil {
		t.close()
		run() // to its end, which is now
		near.Close()
		return nil, err
	}
	go run() // ends when either side closes, or the broker is lost
	return near, nil
}

// SkipTLSHandshake implements what nats.CustomDialer may: what goes through a tunnel is as safe as the connections to the broker.
func (v *Visitor) SkipTLSHandshake() bool { return true }
