package apply

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
)

// deleteHere has capture tell of a local delete of table t's row id, one that is later than all that was shipped.
func (p *pair) deleteHere(id int, lsn uint64) {
	p.t.Helper()
	tab, err := p.a.catalog.table(p.t.Context(), "public", "t")
	if err != nil {
		p.t.Fatal(err)
	}
	key := intKey(id)
	v := origin.Version{Stamp: p.last + 1000, Origin: origin.Origin{Node: "b", Epoch: 1}}
	p.a.LocalDelete("public", "t", key, tab.hasher.Hash(key, nil), v, 1, lsn)
}

// TestTakeBackOutlivesACrash: as soon as the slot may be confirmed past a local delete, a crash neither brings the
// row back that was taken back, nor the one that was not because it had become a user's: nobody would take it again
// (R20; the model's TakeUnsafe and EarlyConfirm).
func TestTakeBackOutlivesACrash(t *testing.T) {
	for name, c := range map[string]struct{ meanwhile, want string }{
		"taken back":     {`SELECT`, ""},
		"found a user's": {`UPDATE t SET v = 'of a user'`, "of a user"},
	} {
		t.Run(name, func(t *testing.T) {
			s := pgtest.SharedServer(t, pgtest.Newest(t))
			// Nobody else flushes what was committed asynchronously.
			server := pgtest.NewCluster(t, s.Major, map[string]string{"fsync": "off", "wal_writer_delay": "10s", "autovacuum": "off"})
			to := &pgtest.Database{Name: "own", Major: s.Major, DSN: server.SocketDSN("postgres")}
			p := newPairIn(t, s.NewDatabase(t), to, tableT, tableT)
			p.do(`INSERT INTO t VALUES (1, 'x')`)
			if _, err := p.a.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.to.Exec(t, `SET synchronous_commit = off; `+c.meanwhile)
			p.deleteHere(1, 500)
			awaitTrue(t, func() bool { return p.a.HoldLSN() == 0 })
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			p.stop() // its database is lost
			if err := server.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := p.to.Value(t, `SELECT coalesce(string_agg(v, ' '), '') FROM t`); got != c.want {
				t.Errorf("after the crash there is %q, want %q", got, c.want)
			}
		})
	}
}

// TestDeletesAreCheckedAfterAStart: what an earlier life applied is in no registry any more, so that deletes which
// capture reads again are looked up in the database: those that the slot is not confirmed past, up to where the WAL
// ended at the start (R20; the model's NoRescan).
func TestDeletesAreCheckedAfterAStart(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t VALUES (1, 'x'), (2, 'x'), (3, 'x')`)
	p.stop()
	p.start()
	if err := p.a.CheckDeletesFrom(t.Context(), 500); err != nil {
		t.Fatal(err)
	}
	p.deleteHere(1, 499)
	p.deleteHere(2, 1<<62)
	if lsn := p.a.HoldLSN(); lsn != 0 {
		t.Errorf("held at %d by a delete that the earlier life was through with, or that comes behind the start", lsn)
	}
	p.deleteHere(3, 500)
	awaitValue(t, p, `SELECT string_agg(id::text, ' ' ORDER BY id) FROM t`, "1 2")
	awaitTrue(t, func() bool { return p.a.HoldLSN() == 0 })
	// From here on capture has passed the commits of the earlier life.
	p.wal.tell(origin.Vector{{Origin: nodeA, Seq: p.seq}})
	p.deleteHere(1, 501)
	if lsn := p.a.HoldLSN(); lsn != 0 {
		t.Errorf("held at %d by a delete that stands behind all that the earlier life applied", lsn)
	}
}
