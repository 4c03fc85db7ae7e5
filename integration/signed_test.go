package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// forged is the frame that somebody makes of one with a single transaction, so that it is the next one and writes another value.
func forged(t *testing.T, f *wire.Frame, value, other string) *wire.Frame {
	t.Helper()
	g := &wire.Frame{Header: f.Header}
	g.FirstSeq, g.LastSeq, g.LastStamp = f.LastSeq+1, f.LastSeq+1, f.LastStamp+1
	recs := wire.NewRecords(f.Body)
	for {
		rest := recs.Rest()
		rec, err := recs.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		raw := rest[:len(rest)-len(recs.Rest())]
		if rec.Kind == wire.KindBegin {
			b, err := wire.ParseBegin(rec.Payload)
			if err != nil {
				t.Fatal(err)
			}
			b.Seq, b.Stamp = g.LastSeq, g.LastStamp
			raw = wire.AppendBegin(nil, b)
		}
		g.Body = append(g.Body, raw...)
	}
	if !bytes.Contains(g.Body, []byte(value)) {
		t.Fatalf("the last frame does not write %s", value)
	}
	g.Body = bytes.ReplaceAll(g.Body, []byte(value), []byte(other))
	return g
}

// lastWritten is the frame that c hands on with a's last transaction, as if c had written it last, and the last place in c's stream.
func lastWritten(t *testing.T, nc *nats.Conn, name string) (f *wire.Frame, last uint64) {
	t.Helper()
	r, err := stream.NewReader(nc, stream.ReaderOptions{Cluster: name, Sender: "c", Origin: "a"})
	var first uint64
	if err == nil {
		first, last, _, err = r.Info(t.Context())
	}
	epoch := uint64(0)
	for seq := last; err == nil && seq >= first; seq-- {
		if f, err = r.Get(t.Context(), seq); err == nil && f.FirstSeq != 0 {
			f.WriterEpoch = max(epoch, f.WriterEpoch)
			return f, last
		} else if err == nil {
			epoch = max(epoch, f.WriterEpoch)
		}
	}
	t.Fatalf("c hands on nothing: %v", err)
	return nil, 0
}

// TestForgedFrames: a node that hands on frames of another one makes up one in its name. It is applied where nobody looks, and refused
// where frames are signed, whatever it has for a signature; all else goes on.
func TestForgedFrames(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name, signatures string
		spoil            func(honest, f *wire.Frame)
		applied          bool
	}{
		{"none are signed", config.SignaturesNone, func(_, _ *wire.Frame) {}, true},
		{"it has the signature of another frame", config.SignaturesWrite, func(_, _ *wire.Frame) {}, false},
		{"it has a frame's signature and claim", config.SignaturesWrite, func(honest, f *wire.Frame) {
			honest.Keep()
			f.Claim = honest.Claim
		}, false},
		{"it is not signed", config.SignaturesRequire, func(_, f *wire.Frame) { f.Signature = nil }, false},
		{"it is not signed, and need not be", config.SignaturesWrite, func(_, f *wire.Frame) { f.Signature = nil }, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Nodes: 3, Keys: true, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`, Config: map[string]string{
				"topology.kind": "star", "topology.center": "c", "stream.signatures": x.signatures, "stream.compression": "none",
				"topology.failover_after": "10m"}})
			a, b, mid := c.Node("a"), c.Node("b"), c.Node("c")
			b.Exec(`INSERT INTO t VALUES (2, 'of b')`)
			c.WaitConverged()
			a.Exec(`INSERT INTO t VALUES (1, 'honest')`)
			b.Await(`SELECT v FROM t WHERE id = 1`, "honest")

			// Nothing else is handed on from now on.
			a.Links["c"].Cut()
			mid.Links["a"].Cut()
			mid.Stop()
			mid.Start()
			mid.AwaitStatus(func(r *cluster.Report) bool { return r.Waiting == "" })
			nc := mid.Connect()
			honest, last := lastWritten(t, nc, c.Name)
			if (honest.Signature != nil) != (x.signatures != config.SignaturesNone) {
				t.Fatalf("%s: signature %x", x.signatures, honest.Signature)
			}
			f := forged(t, honest, "honest", "forged")
			x.spoil(honest, f)
			data, err := new(wire.Encoder).Append(nil, f)
			if err != nil {
				t.Fatal(err)
			}
			m := &nats.Msg{Subject: stream.Subject(c.Name, "c", "a"), Data: data, Header: nats.Header{jetstream.ExpectedLastSeqHeader: {fmt.Sprint(last)}}}
			js, err := jetstream.New(nc)
			if err == nil {
				_, err = js.PublishMsg(t.Context(), m)
			}
			if err != nil {
				t.Fatal(err)
			}
			mid.Exec(`INSERT INTO t VALUES (3, 'of c')`)
			b.Await(`SELECT v FROM t WHERE id = 3`, "of c")
			if x.applied {
				b.Await(`SELECT v FROM t WHERE id = 1`, "forged")
				return
			}
			b.AwaitStatus(func(r *cluster.Report) bool {
				for _, al := range r.Alarms {
					if al.Code == "frames-forged" {
						return strings.Contains(al.Text, "of node a is refused, and comes from node c: frame") && strings.Contains(al.Text, wire.ErrSignature.Error()) && linkOf(r, "a").Refused > 0
					}
				}
				return false
			})
			if got := b.Value(`SELECT v FROM t WHERE id = 1`); got != "honest" {
				t.Errorf("node b has %s", got)
			}
		})
	}
}

// TestReplayedFrame: a frame that its author has written and signed is sent to its stream once more. It changes nothing, and status counts it.
func TestReplayedFrame(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Keys: true, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b := c.Node("a"), c.Node("b")
	a.Exec(`INSERT INTO t VALUES (1, 'old')`)
	b.Await(`SELECT v FROM t`, "old")
	a.Exec(`UPDATE t SET v = 'new'`)
	b.Await(`SELECT v FROM t`, "new")
	nc := a.Connect()
	s, err := stream.NewReader(nc, stream.ReaderOptions{Cluster: c.Name, Sender: "a", Origin: "a"})
	if err != nil {
		t.Fatal(err)
	}
	first, last, _, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	own, err := js.Stream(t.Context(), stream.StreamName(c.Name, "a"))
	if err != nil {
		t.Fatal(err)
	}
	sent := uint64(0)
	for seq := first; seq <= last; seq++ {
		m, err := own.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		f, err := s.Get(t.Context(), seq)
		if err != nil || f.FirstSeq == 0 || f.LastSeq < f.FirstSeq {
			continue
		}
		if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: m.Subject, Data: m.Data}); err != nil {
			t.Fatal(err)
		}
		sent += f.LastSeq - f.FirstSeq + 1
	}
	if sent == 0 {
		t.Fatal("no frame with a transaction was found")
	}
	b.AwaitStatus(func(r *cluster.Report) bool { return linkOf(r, "a").Again == sent })
	if got := b.Value(`SELECT v FROM t`); got != "new" {
		t.Errorf("node b has %s", got)
	}
}

// TestSigningBegins: nodes that replicate begin to sign, one after the other, and then to require it; one that lacks a key does not start.
func TestSigningBegins(t *testing.T) {
	t.Parallel()
	kinds := map[string]string{"topology.kind": "star", "topology.center": "c", "stream.signatures": config.SignaturesNone}
	c := cluster.New(t, cluster.Options{Nodes: 3, Keys: true, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`, Config: kinds})
	id := 0
	write := func() {
		for _, n := range c.Nodes {
			id++
			n.Exec(fmt.Sprintf(`INSERT INTO t VALUES (%d, 'of %s')`, id, n.Name))
			n.Exec(fmt.Sprintf(`INSERT INTO t SELECT i, repeat('large ', 400) FROM generate_series(%d, %d) i`, 10000*id, 10000*id+999))
		}
	}
	write()
	for _, to := range []string{config.SignaturesWrite, config.SignaturesRequire, config.SignaturesWrite, config.SignaturesNone} {
		kinds["stream.signatures"] = to
		for _, n := range c.Nodes {
			n.Stop()
			n.Start()
			write()
		}
		c.WaitConverged()
	}
	b := c.Node("b")
	b.Stop()
	for _, file := range []string{"frames.nk", "signers"} {
		cfg := b.Load()
		cfg.Stream.Signatures, cfg.NATS.KeysDir = config.SignaturesRequire, t.TempDir()
		if err := errors.Join(os.CopyFS(cfg.NATS.KeysDir, os.DirFS(b.Keys())), os.Remove(filepath.Join(cfg.NATS.KeysDir, file))); err != nil {
			t.Fatal(err)
		}
		if err := bridge.Run(t.Context(), cfg, bridge.Options{Logger: b.Logger()}); err == nil || !strings.Contains(err.Error(), file+": no such file") || !strings.Contains(err.Error(), "run pgbridge keys") {
			t.Errorf("without %s it says %v", file, err)
		}
	}
}
