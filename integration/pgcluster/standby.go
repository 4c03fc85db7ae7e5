package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"
)

// StartStandby makes a physical standby of a running cluster, which follows it through a physical slot that is made for it, and
// starts it. From 17 on it syncs the failover slots of the named database. Of o, Dir, Settings and Port count.
func StartStandby(ctx context.Context, primary *Cluster, slot, database string, o Options) (*Cluster, error) {
	c := &Cluster{install: primary.install, acc: primary.acc, dir: o.Dir}
	if err := c.follow(ctx, primary, slot, database, o); err != nil {
		return nil, errors.Join(fmt.Errorf("start a standby of PostgreSQL %d: %w", c.install.Major, err), c.Close())
	}
	return c, nil
}

func (c *Cluster) follow(ctx context.Context, primary *Cluster, slot, database string, o Options) (err error) {
	if c.dir == "" {
		if c.dir, c.release, err = makeOwnDir(os.TempDir()); err != nil {
			return err
		}
	}
	if err := os.Chmod(c.dir, 0o755); err != nil {
		return err
	}
	if err := c.makeSocketDir(); err != nil {
		return err
	}
	if err := c.backUp(ctx, primary, slot); err != nil {
		return err
	}
	signal := filepath.Join(c.DataDir(), "standby.signal")
	if err := errors.Join(os.WriteFile(signal, nil, 0o600), c.acc.own(signal)); err != nil {
		return err
	}
	settings := map[string]string{
		"primary_conninfo":             fmt.Sprintf("host=%s port=%d user=%s dbname=%s", primary.socketDir, primary.port, Superuser, database),
		"primary_slot_name":            slot,
		"hot_standby":                  "on",
		"hot_standby_feedback":         "on",
		"wal_receiver_status_interval": "1s",
	}
	if c.install.Major >= 17 {
		settings["sync_replication_slots"] = "on"
	}
	for name, value := range o.Settings {
		settings[name] = value
	}
	o.Settings = settings
	return c.startOnFreePort(ctx, o)
}

// backUp copies a running cluster's data directory, with what is needed to make a whole of it.
func (c *Cluster) backUp(ctx context.Context, primary *Cluster, slot string) error {
	conn, err := pgx.Connect(ctx, primary.SocketDSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `SELECT pg_create_physical_replication_slot($1, true)`, slot); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `SELECT pg_backup_start('standby', true)`); err != nil {
		return err
	}
	if err := copyRunning(primary.DataDir(), c.DataDir(), c.acc); err != nil {
		return err
	}
	var label string
	if err := conn.QueryRow(ctx, `SELECT labelfile FROM pg_backup_stop(false)`).Scan(&label); err != nil {
		return err
	}
	path := filepath.Join(c.DataDir(), "backup_label")
	return errors.Join(os.WriteFile(path, []byte(label), 0o600), c.acc.own(path))
}

// copyRunning is copyTree for a server that runs: its files come and go, and what is of this run alone stays behind (PostgreSQL,
// "Making a Base Backup Using the Low Level API").
func copyRunning(from, to string, acc account) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != from {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			if filepath.Dir(rel) == "pg_replslot" {
				return fs.SkipDir
			}
			return acc.mkdir(target, 0o700)
		}
		switch dir := filepath.Dir(rel); {
		case rel == "postmaster.pid" || rel == "postmaster.opts":
			return nil
		case dir == "pg_wal" || dir == "pg_dynshmem" || dir == "pg_notify" || dir == "pg_serial" || dir == "pg_snapshots" || dir == "pg_stat_tmp" || dir == "pg_subtrans":
			return nil
		}
		if err := copyFile(path, target); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		return acc.own(target)
	})
}
