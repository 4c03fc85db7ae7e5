package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	}
}

// server is one end.
type server struct {
	name        string // source or receiver
	cluster     *pgcluster.Cluster
	dsn         string // over the Unix socket
	conn        *pgx.Conn
	pgbenchPath string
}

// exec runs SQL on the one connection to the server.
func (s *server) exec(ctx context.Context, sql string, args ...any) error {
	if _, err := s.conn.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("%s: %.60s: %w", s.name, sql, err)
	}
	return nil
}

// pair is the two servers of one run.
type pair struct {
	source, receiver *server
	dir              string // removed by close
}

// newPair starts both servers with serverSettings.
func newPair(ctx context.Context, in pgcluster.Install, pgbenchPath string) (*pair, error) {
	return newPairWith(ctx, in, nil, pgbenchPath)
}

// newPairWith starts both servers with more settings.
func newPairWith(ctx context.Context, in pgcluster.Install, more map[string]string, pgbenchPath string) (*pair, error) {
	settings := serverSettings()
	maps.Copy(settings, more)
	dir, err := os.MkdirTemp("", "pgbridge-bench-")
	if err != nil {
		return nil, err
	}
	p := &pair{dir: dir, source: &server{name: "source"}, receiver: &server{name: "receiver"}}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(err, p.close())
	}
	err = p.onBoth(func(s *server) error {
		s.pgbenchPath = pgbenchPath
		return s.start(ctx, in, settings, filepath.Join(dir, s.name))
	})
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

// onBoth runs do on both servers at once.
func (p *pair) onBoth(do func(s *server) error) error {
	var g errgroup.Group
	for _, s := range []*server{p.source, p.receiver} {
		g.Go(func() error { return do(s) })
	}
	return g.Wait()
}

// close ends the servers and removes all they wrote.
func (p *pair) close() error {
	err := p.onBoth(func(s *server) error {
		if s.cluster == nil {
			return nil
		}
		if s.conn != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			s.conn.Close(ctx) // the server goes anyway
		}
		return s.cluster.Close()
	})
	return errors.Join(err, os.RemoveAll(p.dir))
}

// prepare makes the line's tables and first rows at both ends.
func (p *pair) prepare(ctx context.Context, l line, n int) error {
	return p.onBoth(func(s *server) error {
		if err := s.exec(ctx, "CREATE TABLE bench_sentinel (round int PRIMARY KEY)"); err != nil {
			return err
		}
		if err := l.prepare(ctx, s, n); err != nil {
			return err
		}
		return s.exec(ctx, "VACUUM (ANALYZE)")
	})
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

// compare returns an error that names the tables whose rows are not the same at both ends.
func (p *pair) compare(ctx context.Context) error {
	var sums [2][]string
	err := p.onBoth(func(s *server) (err error) {
		i := 0
		if s == p.receiver {
			i = 1
		}
		sums[i], err = s.digests(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if slices.Equal(sums[0], sums[1]) {
		return nil
	}
	var different []string
	for i := range min(len(sums[0]), len(sums[1])) {
		if sums[0][i] != sums[1][i] {
			different = append(different, fmt.Sprintf("source %s, receiver %s", sums[0][i], sums[1][i]))
		}
	}
	return fmt.Errorf("%w: %s", errDifferent, strings.Join(different, "; "))
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
