package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
)

// slotName is the name of the node's slot and of its publication.
func slotName(cfg *config.Config) string { return fmt.Sprintf("pgb_%s_%s", cfg.Cluster, cfg.Node) }

// peerNames lists the other nodes, sorted.
func peerNames(cfg *config.Config) []string {
	var names []string
	for name := range cfg.Topology.Nodes {
		if name != cfg.Node {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func applySetup(cfg *config.Config) apply.SetupOptions {
	return apply.SetupOptions{Cluster: cfg.Cluster, Node: cfg.Node, Peers: peerNames(cfg)}
}

func captureSetup(ctx context.Context, cfg *config.Config, p *capture.Primary) (capture.SetupOptions, error) {
	o := checkOptions(cfg, p)
	var err error
	o.HasRun, err = hasRun(ctx, p)
	return o, err
}

// hasRun is apply.HasRun of a primary.
func hasRun(ctx context.Context, p *capture.Primary) (ran bool, err error) {
	err = p.Ask(ctx, func(conn *pgx.Conn) error {
		ran, err = apply.HasRun(ctx, conn)
		return err
	})
	return ran, err
}

func checkOptions(cfg *config.Config, p *capture.Primary) capture.CheckOptions {
	o := capture.CheckOptions{DSN: cfg.Postgres.DSN, Primary: p, Cluster: cfg.Cluster, Node: cfg.Node,
		Slot: slotName(cfg), Publication: slotName(cfg), Tables: cfg.Tables, Failover: cfg.Postgres.Failover, Reader: cfg.Reader(cfg.Node), Rows: placedOf(cfg), Columns: columnsOf(cfg)}
	if writers := writersOf(cfg); writers.Bar(cfg.Node) {
		o.MayWrite = func(schema, table string) bool { return writers.MayWrite(cfg.Node, schema, table) }
	}
	for _, t := range cfg.Conflict.Tables {
		o.Merged = append(o.Merged, t.Match)
	}
	return o
}

// Setup creates in the local database what the bridge needs and is missing: the schema pgbridge and the
// replication origins first, then publication and slot, so that whatever the slot does not see is older
// than the node's first transaction id. It is idempotent.
//
// It never replaces the slot of a node that has run: see capture.SetupOptions. tell gets, now and then, for whom the creation of the
// slot waits.
func Setup(ctx context.Context, cfg *config.Config, tell func(text string)) error {
	p := capture.NewPrimary(cfg.Postgres.DSN)
	defer p.Close()
	return setUp(ctx, cfg, p, tell)
}

func setUp(ctx context.Context, cfg *config.Config, p *capture.Primary, tell func(text string)) error {
	if err := capture.CheckServer(ctx, checkOptions(cfg, p)); err != nil {
		return err
	}
	if err := copying(ctx, cfg, p); err != nil {
		return err
	}
	if err := setUpApply(ctx, p, applySetup(cfg)); err != nil {
		return err
	}
	o, err := captureSetup(ctx, cfg, p)
	if err != nil {
		return err
	}
	o.Waits = tell
	return capture.Setup(ctx, o)
}

// setUpApply is apply.Setup of a primary.
func setUpApply(ctx context.Context, p *capture.Primary, o apply.SetupOptions) error {
	return p.Ask(ctx, func(conn *pgx.Conn) error { return apply.Setup(ctx, conn, o) })
}

// SetupSQL returns what Setup runs, for a person to run by hand, and before and behind it what the role in
// postgres.dsn needs to run a bridge. That person has to be a superuser; the role need not be.
func SetupSQL(ctx context.Context, cfg *config.Config) ([]string, error) {
	p := capture.NewPrimary(cfg.Postgres.DSN)
	defer p.Close()
	o, err := captureSetup(ctx, cfg, p)
	if mayNot(err) { // before the grants: it cannot look, and what is there may have run
		o.HasRun, err = true, nil
	}
	if err != nil {
		return nil, err
	}
	tables := apply.SetupSQL(applySetup(cfg))
	g, err := grantSQL(ctx, o, tables)
	if err != nil {
		return nil, err
	}
	sql, err := capture.SetupSQL(ctx, o)
	if err != nil {
		return nil, err
	}
	return slices.Concat(g.before, tables, sql, g.after), nil
}

// mayNot reports whether the server refused for want of a privilege.
func mayNot(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42501"
}
