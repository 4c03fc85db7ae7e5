package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

// serverSettings are those of all servers, on top of pgcluster's. Checkpoints and autovacuum are kept out
// of a run: VACUUM and ANALYZE are run by hand before it.
func serverSettings() map[string]string {
	return map[string]string{
		"shared_buffers":     "2GB",
		"wal_buffers":        "64MB",
		"max_wal_size":       "16GB",
		"checkpoint_timeout": "1h",
		"autovacuum":         "off",
		"fsync":              "on",
		"synchronous_commit": "on",
		// Room for eight subscriptions on one server.
		"max_worker_processes":            "40",
		"max_logical_replication_workers": "20",
	}
}

// server is one end.
type server struct {
	name        string // source or receiver
	place       int    // among all: 0 is the source, 1 the receiver
	cluster     *pgcluster.Cluster
	dsn         string // over the Unix socket
	conn        *pgx.Conn
	guest       bool // a database on the receiver's cluster
	pgbenchPath string
	sentinelLSN uint64 // nothing of the work is committed here or beyond, but the sentinel
}

func (s *server) major() int { return s.cluster.Install().Major }

// exec runs SQL on the one connection to the server.
func (s *server) exec(ctx context.Context, sql string, args ...any) error {
	if _, err := s.conn.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("%s: %.60s: %w", s.name, sql, err)
	}
	return nil
}

// pair is the two servers of one run; a mesh has more.
type pair struct {
	source, receiver *server
	more             []*server // further receivers
	dir              string    // removed by close
}

// newPair starts the servers with serverSettings and these on top, which may be nil.
func newPair(ctx context.Context, in pgcluster.Install, pgbenchPath string, settings map[string]string, more ...*server) (*pair, error) {
	all := serverSettings()
	maps.Copy(all, settings)
	dir, err := os.MkdirTemp("", "pgbridge-bench-")
	if err != nil {
		return nil, err
	}
	p := &pair{dir: dir, more: more, source: &server{name: sourceNode}, receiver: &server{name: receiverNode, place: 1}}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(err, p.close())
	}
	err = p.onAll(func(s *server) error {
		s.pgbenchPath = pgbenchPath
		if s.guest {
			return nil
		}
		return s.start(ctx, in, all, filepath.Join(dir, s.name))
	})
	for _, s := range more {
		if s.guest && err == nil {
			err = s.open(ctx, p.receiver)
		}
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (s *server) start(ctx context.Context, in pgcluster.Install, settings map[string]string, dir string) (err error) {
	s.cluster, err = pgcluster.Start(ctx, pgcluster.Options{Install: in, Dir: dir, Settings: settings})
	if err != nil {
		return err
	}
	s.dsn = s.cluster.SocketDSN("postgres")
	s.conn, err = pgx.Connect(ctx, s.dsn)
	return err
}

// all returns the ends, the source first.
func (p *pair) all() []*server { return append([]*server{p.source, p.receiver}, p.more...) }

// writers returns the ends at which the line's work is committed.
func (p *pair) writers(l line) []*server {
	if l.everywhere {
		return p.all()
	}
	return []*server{p.source}
}

// onAll runs do on all servers at once.
func (p *pair) onAll(do func(s *server) error) error {
	var g errgroup.Group
	for _, s := range p.all() {
		g.Go(func() error { return do(s) })
	}
	return g.Wait()
}

// close ends the servers and removes all they wrote.
func (p *pair) close() error {
	err := p.onAll(func(s *server) error {
		if s.cluster == nil {
			return nil
		}
		if s.conn != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			s.conn.Close(ctx) // the server goes anyway
		}
		if s.guest {
			return nil
		}
		return s.cluster.Close()
	})
	return errors.Join(err, os.RemoveAll(p.dir))
}

// prepare makes the line's tables and first rows at both ends.
func (p *pair) prepare(ctx context.Context, l line, n int) error {
	return p.onAll(func(s *server) error {
		if err := s.exec(ctx, "CREATE TABLE bench_sentinel (round int PRIMARY KEY)"); err != nil {
			return err
		}
		if err := l.prepare(ctx, s, n); err != nil {
			return err
		}
		return s.exec(ctx, "VACUUM (ANALYZE)")
	})
}

// commit commits the work, and the sentinels after it.
func (p *pair) commit(ctx context.Context, l line, n int) error {
	for _, s := range p.writers(l) {
		if err := l.write(ctx, s, n); err != nil {
			return err
		}
		const sql = "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8"
		if err := s.conn.QueryRow(ctx, sql).Scan(&s.sentinelLSN); err != nil {
			return err
		}
		if err := s.markEnd(ctx, roundEnd+s.place); err != nil {
			return err
		}
	}
	return nil
}

// awaitAll waits until every end shows the sentinels of all others.
func (p *pair) awaitAll(ctx context.Context, l line, failed func() error) error {
	for _, s := range p.all() {
		for _, w := range p.writers(l) {
			if w == s {
				continue
			}
			if err := s.awaitEnd(ctx, roundEnd+w.place, failed); err != nil {
				return err
			}
		}
	}
	return nil
}

// pollPause is how long the probe rests between two looks at the receiver: what it costs is below two
// hundredths of a core, and it bounds how exact a time is.
const pollPause = 5 * time.Millisecond

// markEnd commits the row that the other end shows last of all.
func (s *server) markEnd(ctx context.Context, round int) error {
	return s.exec(ctx, "INSERT INTO bench_sentinel VALUES ($1)", round)
}

// awaitEnd waits until the server shows that row of the other end. It gives up when failed says why replication
// cannot go on.
func (s *server) awaitEnd(ctx context.Context, round int, failed func() error) error {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		var there bool
		err := s.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM bench_sentinel WHERE round = $1)", round).Scan(&there)
		if err == nil && there {
			return nil
		}
		if err == nil {
			err = failed()
		}
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the %s does not show the last row: %w", s.name, context.Cause(ctx))
		}
	}
}

const tablesSQL = `
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgbridge', 'pglogical', 'bucardo') AND n.nspname NOT LIKE 'pg_toast%'
ORDER BY 1`

// compare returns an error that names the tables whose rows are not the same at all ends.
func (p *pair) compare(ctx context.Context) error {
	ends := p.all()
	sums := make([][]string, len(ends))
	err := p.onAll(func(s *server) (err error) {
		sums[s.place], err = s.digests(ctx)
		return err
	})
	if err != nil {
		return err
	}
	var different []string
	for place, sum := range sums {
		if len(sum) != len(sums[0]) {
			return fmt.Errorf("%w: source has %d tables, %s %d", errDifferent, len(sums[0]), ends[place].name, len(sum))
		}
		for i := range sum {
			if sum[i] != sums[0][i] {
				different = append(different, fmt.Sprintf("source %s, %s %s", sums[0][i], ends[place].name, sum[i]))
			}
		}
	}
	if different != nil {
		return fmt.Errorf("%w: %s", errDifferent, strings.Join(different, "; "))
	}
	return nil
}

// errDifferent means that the receiver does not hold the source's rows.
var errDifferent = errors.New("not converged")

// digests returns name, number of rows and the sum of all rows' hashes for each table.
func (s *server) digests(ctx context.Context) ([]string, error) {
	rows, err := s.conn.Query(ctx, tablesSQL)
	if err != nil {
		return nil, err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	for i, table := range tables {
		var digest string
		sql := "SELECT count(*) || ' rows, digest ' || COALESCE(sum(hashtextextended(t::text, 0)::numeric), 0) FROM " + table + " t"
		if err := s.conn.QueryRow(ctx, sql).Scan(&digest); err != nil {
			return nil, fmt.Errorf("%s: digest of table %s: %w", s.name, table, err)
		}
		tables[i] = table + ": " + digest
	}
	return tables, nil
}
