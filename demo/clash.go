package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// jointAccount is the row over which two nodes clash; no writer touches it.
const jointAccount = "00000000-0000-0000-0000-000000000000"

// clashTimeout is what a conflict may take until all nodes agree.
const clashTimeout = 30 * time.Second

// clash lets two nodes change one row while neither can know of the other's change, and shows how all
// nodes decide.
func (d *demo) clash(ctx context.Context) error {
	first, second := d.nodes[0], d.nodes[1]
	d.screen.title("One honest conflict")
	d.screen.say("All bridges are paused, as if the network were gone. Both of these commit, and hear of nothing:")
	if err := d.apart(ctx, func() error {
		return inOrder(
			func() error { return d.moveJoint(ctx, first, "Paris") },
			func() error { return d.moveJoint(ctx, second, "Tokyo") },
		)
	}); err != nil {
		return err
	}
	begun := time.Now()
	d.screen.say("The bridges go on.")
	if err := await(ctx, clashTimeout, func(ctx context.Context) (string, error) { return d.undecided(ctx, first, second) }); err != nil {
		return fmt.Errorf("decide the conflict: %w", err)
	}
	return d.tellClash(ctx, begun)
}

// apart does something while no bridge runs.
func (d *demo) apart(ctx context.Context, do func() error) (err error) {
	var paused []*child
	defer func() {
		for _, c := range paused {
			err = errors.Join(err, c.resume())
		}
	}()
	for _, n := range d.nodes {
		if err := n.alive(); err != nil {
			return err
		}
		if err := n.bridge.pause(); err != nil {
			return err
		}
		paused = append(paused, n.bridge)
	}
	return do()
}

func (d *demo) moveJoint(ctx context.Context, n *node, city string) error {
	_, err := n.conn.Exec(ctx, `UPDATE accounts SET city = $1, changed_on = $2 WHERE id = $3`, city, n.name, jointAccount)
	if err != nil {
		return fmt.Errorf("change the joint account on node %s: %w", n.name, err)
	}
	n.ledger.note(tally{updates: 1})
	d.screen.say("  on %s   UPDATE accounts SET city = '%s' WHERE owner = 'shared 0'", n.name, city)
	return nil
}

// losses are the entries about the joint account in the conflict history.
const lossesSQL = `
SELECT kind, outcome, remote_origin, remote_stamp, remote_row->>'city', local_origin, local_stamp, local_row->>'city'
FROM pgbridge.conflict WHERE relation = 'shop.accounts' AND COALESCE(local_row, remote_row)->>'id' = $1 ORDER BY id`

// loss is one decision: who met whom, and who won.
type loss struct {
	Kind, Outcome string
	Remote, Local version
}

// version is one node's write of the row. Stamps are microseconds since 2000.
type version struct {
	Origin string
	Stamp  int64
	City   *string // nil if it was a delete
}

func (n *node) losses(ctx context.Context) ([]loss, error) {
	rows, err := n.conn.Query(ctx, lossesSQL, jointAccount)
	if err != nil {
		return nil, fmt.Errorf("read conflicts of node %s: %w", n.name, err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l loss, err error) {
		err = row.Scan(&l.Kind, &l.Outcome, &l.Remote.Origin, &l.Remote.Stamp, &l.Remote.City, &l.Local.Origin, &l.Local.Stamp, &l.Local.City)
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("read conflicts of node %s: %w", n.name, err)
	}
	return all, nil
}

// undecided says what is missing: the same row on all nodes, and the loser in the history of those two
// that wrote it.
func (d *demo) undecided(ctx context.Context, writers ...*node) (string, error) {
	cities, err := d.jointCities(ctx)
	if err != nil {
		return "", err
	}
	for i, city := range cities {
		if city != cities[0] {
			return fmt.Sprintf("the joint account is in %s on node %s, in %s on node %s", cities[0], d.nodes[0].name, city, d.nodes[i].name), nil
		}
	}
	for _, n := range writers {
		if err := n.alive(); err != nil {
			return "", err
		}
		losses, err := n.losses(ctx)
		if err != nil {
			return "", err
		}
		if len(losses) == 0 {
			return fmt.Sprintf("node %s has recorded no conflict", n.name), nil
		}
	}
	return "", nil
}

func (d *demo) jointCities(ctx context.Context) ([]string, error) {
	cities := make([]string, len(d.nodes))
	for i, n := range d.nodes {
		if err := n.conn.QueryRow(ctx, `SELECT city FROM accounts WHERE id = $1`, jointAccount).Scan(&cities[i]); err != nil {
			return nil, fmt.Errorf("read the joint account on node %s: %w", n.name, err)
		}
	}
	return cities, nil
}

// tellClash shows the outcome, the reason and the loser.
func (d *demo) tellClash(ctx context.Context, begun time.Time) error {
	cities, err := d.jointCities(ctx)
	if err != nil {
		return err
	}
	s := d.screen
	s.say("%s later every node shows %s.", age(time.Since(begun)), cities[0])
	told := false
	for _, n := range d.nodes {
		losses, err := n.losses(ctx)
		if err != nil {
			return err
		}
		for _, l := range losses {
			winner, loser := l.Local, l.Remote
			if l.Outcome == "remote wins" {
				winner, loser = loser, winner
			}
			if !told {
				s.say("Why: the later stamp wins, on every node alike (%s's is %s later).", winner.Origin, gap(winner, loser))
				s.say("  %s   %s   %s", winner.stamp(), winner.Origin, winner.city())
				s.say("  %s   %s   %s   lost, and is kept in pgbridge.conflict:", loser.stamp(), loser.Origin, loser.city())
				told = true
			}
			s.say("    on %s: %s of shop.accounts, %s: %s (%s) over %s (%s)", n.name, l.Kind, l.Outcome,
				winner.city(), winner.Origin, loser.city(), loser.Origin)
		}
	}
	return nil
}

// stamp gives the version's hybrid time as a clock shows it, in UTC.
func (v version) stamp() string {
	epoch := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	return epoch.Add(time.Duration(v.Stamp) * time.Microsecond).Format("15:04:05.000000")
}

func (v version) city() string {
	if v.City == nil {
		return "(deleted)"
	}
	return *v.City
}

// gap gives how much later v is than w.
func gap(v, w version) string {
	return fmt.Sprintf("%.3f ms", float64(v.Stamp-w.Stamp)/1000)
}
