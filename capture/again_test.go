package capture

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestRowsWrittenAgainAreCaptured: of a transaction that the bridge applies, what stands behind the message is captured like a user's,
// before whatever users write later, in a small one and in one that the server streams. Beyond AgainLSN no such message counts, and
// the server does not send what bridges apply.
func TestRowsWrittenAgainAreCaptured(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		for _, rows := range []int{10, 5000} {
			t.Run(fmt.Sprint(rows, " rows"), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, s.NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY, x text)`)
				smallMemory(b)
				keeper := b.as(originPrefix(b.db.Name, "a") + "_back")
				run := func(sql string, args ...any) {
					t.Helper()
					if _, err := keeper.Exec(t.Context(), sql, args...); err != nil {
						t.Fatal(err)
					}
				}
				again := func(sql string) {
					t.Helper()
					run(`BEGIN`)
					run(`INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(1, $1::int) i`, rows)
					run(`DELETE FROM t WHERE id = 1`)
					run(`SELECT pg_logical_emit_message(true, $1, '')`, wire.AgainPrefix)
					run(sql)
					run(`SELECT pg_replication_origin_xact_setup('0/0', '2100-01-01')`)
					run(`COMMIT`)
				}
				again(`UPDATE t SET id = id WHERE id = 2; DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (0)`)
				fmt.Sscan(b.db.Value(t, `SELECT (pg_current_wal_insert_lsn() - '0/0')::int8`), &b.opts.AgainLSN)
				b.exec(`INSERT INTO t VALUES (-1)`)
				b.start(nil)
				b.sentinel()
				run(`DELETE FROM t`)
				again(`DELETE FROM t WHERE id = 4`)
				b.exec(`INSERT INTO t VALUES (-2)`)
				var text strings.Builder
				got := b.transactions(b.sentinel())
				for _, x := range got {
					text.WriteString(x.String())
				}
				large := map[bool]string{true: " large"}[rows > 10]
				want := "1" + large + " up {} low {}\n  update public.t to id=2 x=" + strings.Repeat("x", 50) + "\n  delete public.t key id=3 x=NULL\n  insert public.t id=0 x=NULL\n" +
					"2 up {} low {}\n  insert public.t id=-1 x=NULL\n4 up {} low {}\n  insert public.t id=-2 x=NULL\n"
				if text.String() != want {
					t.Fatalf("got\n%s", text.String())
				}
				if at := origin.StampOf(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)); got[0].Stamp != at || got[1].Stamp <= at {
					t.Errorf("stamps %d and %d, want %d and later", got[0].Stamp, got[1].Stamp, at)
				}
				if told := b.deletes.told(); told[0] != "1 delete public.t id=3" || strings.Contains(told[1], "public.t ") {
					t.Errorf("told %q", told)
				}
				if st, want := b.capture.Status(), map[bool]uint64{true: 2, false: 0}[s.Major < 16]; st.Foreign != want {
					t.Errorf("%d transactions dropped, want %d", st.Foreign, want)
				}
			})
		}
	})
}
