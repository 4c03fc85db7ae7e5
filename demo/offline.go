package demo

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

//go:embed calendar.sql
var calendarSQL string

// home is the node that the devices dial. Nobody can dial a device.
const home = "home"

var calendar = &world{name: "calendar", nodes: []string{"laptop", "phone", "tablet", home}, edges: []string{"laptop", "phone", "tablet"},
	schema: calendarSQL, tables: "one table, appointments", try: "UPDATE calendar.appointments SET room = 'Red'"}

// calendarConfig says that the devices dial out only, and how changes that nobody had seen of each other become one appointment.
const calendarConfig = `  kind: star
  center: home
  roles: {laptop: edge, phone: edge, tablet: edge}
conflict:
  tables:
    calendar.appointments:
      rows: manual               # title, time and room: somebody decides
      deletes: update_wins       # who changes it still wants it
      columns:
        guests: set
        notes: text_merge
`

// offline is the script of that name.
func (d *demo) offline(ctx context.Context) error {
	d.screen.say("pgbridge demo: one calendar on a laptop, a phone and a tablet, and on a server at home, PostgreSQL %s", d.install.Version)
	d.screen.title("Set-up")
	return inOrder(
		func() error { return d.startServers(ctx, calendar) },
		func() error { return d.startBridges(ctx, "a star", calendarConfig) },
		func() error { return d.firstAppointments(ctx) },
		func() error { return d.editOffline(ctx) },
		func() error { return d.meet(ctx) },
		func() error { return d.decide(ctx) },
		func() error { return d.judge(ctx) },
	)
}

// edit is a statement of somebody who uses a device.
type edit struct{ device, does, sql string }

// edits commits statements and tells of them.
func (d *demo) edits(ctx context.Context, all ...edit) error {
	for _, e := range all {
		n := d.device(e.device)
		tag, err := n.conn.Exec(ctx, e.sql)
		if err != nil {
			return fmt.Errorf("%s on the %s: %w", e.does, e.device, err)
		}
		t := tally{}
		switch rows := int(tag.RowsAffected()); {
		case tag.Insert():
			t.inserts = rows
		case tag.Update():
			t.updates = rows
		case tag.Delete():
			t.deletes = rows
		}
		n.ledger.note(t)
		d.screen.say("  %-7s %s", e.device, e.does)
	}
	return nil
}

func (d *demo) device(name string) *node {
	for _, n := range d.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (d *demo) firstAppointments(ctx context.Context) error {
	d.screen.title("All are online")
	return inOrder(
		func() error {
			return d.edits(ctx, edit{"laptop", "writes three appointments", `INSERT INTO appointments (title, at, guests, notes) VALUES
				('Dentist', '09:00', '{}', ''), ('Lunch', '12:30', '{Eve}', 'at the Ponte'), ('Review', '16:00', '{}', '')`})
		},
		func() error { return d.checkpoint(ctx) },
		func() error { return d.showCalendar(ctx, d.device("tablet")) },
	)
}

func (d *demo) editOffline(ctx context.Context) error {
	d.screen.title("All are offline, and write on")
	d.screen.say("The bridge at home is stopped: no device reaches any other one.")
	d.device(home).bridge.stop(bridgeTimeout)
	err := d.edits(ctx,
		edit{"laptop", "moves the dentist to 10:00", `UPDATE appointments SET at = '10:00' WHERE title = 'Dentist'`},
		edit{"laptop", "invites Ada to lunch, and notes: bring cake", `UPDATE appointments SET guests = guests || '{Ada}', notes = notes || ', bring cake' WHERE title = 'Lunch'`},
		edit{"phone", "moves the dentist to 14:30", `UPDATE appointments SET at = '14:30' WHERE title = 'Dentist'`},
		edit{"phone", "invites Bob to lunch, takes Eve off, and notes: vegan", `UPDATE appointments SET guests = '{Bob}', notes = 'vegan ' || notes WHERE title = 'Lunch'`},
		edit{"phone", "gives the review a room", `UPDATE appointments SET room = 'Blue' WHERE title = 'Review'`},
		edit{"tablet", "cancels the review", `DELETE FROM appointments WHERE title = 'Review'`},
		edit{"tablet", "adds a swim", `INSERT INTO appointments (title, at) VALUES ('Swim', '18:00')`},
	)
	if err != nil {
		return err
	}
	for _, name := range calendar.edges {
		if err := d.awaitOutbox(ctx, d.device(name)); err != nil {
			return err
		}
	}
	d.screen.say("What each has written stands in its own stream, on its own disk, and waits for home.")
	return nil
}

// awaitOutbox waits until all that was committed on a node is safe in its stream.
func (d *demo) awaitOutbox(ctx context.Context, n *node) error {
	return await(ctx, checkpointTimeout, func(ctx context.Context) (string, error) {
		r, err := n.status(ctx)
		if err != nil {
			return err.Error(), nil
		}
		if want := uint64(n.ledger.count()); r.Publisher.DurableSeq < want {
			return fmt.Sprintf("the stream of the %s has %d of %d transactions", n.name, r.Publisher.DurableSeq, want), nil
		}
		return "", nil
	})
}

// meet brings the devices online: home is back.
func (d *demo) meet(ctx context.Context) error {
	d.screen.title("They meet")
	n := d.device(home)
	if err := n.startBridge(d.opts.Executable); err != nil {
		return err
	}
	if err := n.awaitBridge(ctx); err != nil {
		return err
	}
	back := time.Now()
	if err := d.checkpoint(ctx); err != nil {
		return err
	}
	d.screen.say("%s after the bridge at home ran again, pid %d, all had everything:", age(time.Since(back)), n.bridge.pid())
	return d.showCalendar(ctx, d.device("laptop"))
}

// decide looks into the inbox and decides for the time that lost.
func (d *demo) decide(ctx context.Context) error {
	n := d.device("phone")
	d.screen.title("The inbox")
	d.screen.say("Nobody can say for them when the dentist is. The later change is shown meanwhile, and on every device that")
	d.screen.say("decided stands what there is to decide:")
	if err := d.pgbridge(ctx, n, "conflicts", "list", "--kind", "undecided"); err != nil {
		return err
	}
	var id string
	err := n.conn.QueryRow(ctx, `SELECT id::text FROM pgbridge.conflict WHERE kind = 'undecided' ORDER BY id LIMIT 1`).Scan(&id)
	if err != nil {
		return fmt.Errorf("read the inbox of the phone: %w", err)
	}
	if err := d.pgbridge(ctx, n, "conflicts", "undo", id); err != nil {
		return err
	}
	n.ledger.note(tally{updates: 1})
	if err := d.checkpoint(ctx); err != nil {
		return err
	}
	return d.showCalendar(ctx, d.device("tablet"))
}

// pgbridge runs a command for a node, as somebody at the terminal would, and shows what it prints.
func (d *demo) pgbridge(ctx context.Context, n *node, args ...string) error {
	d.screen.say("")
	d.screen.say("  $ pgbridge %s", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, d.opts.Executable, append(args, "--config", n.file)...)
	cmd.Env = childEnv(os.Environ())
	out, err := cmd.Output()
	for line := range strings.Lines(string(out)) {
		d.screen.say("  %s", strings.TrimRight(line, "\n"))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return fmt.Errorf("pgbridge %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// showCalendar shows what a device does.
func (d *demo) showCalendar(ctx context.Context, n *node) error {
	lines, err := texts(ctx, n, `SELECT format('  %s  %-8s %-5s guests: %-10s notes: %s', to_char(at, 'HH24:MI'), title, room, array_to_string(guests, ', '), notes)
		FROM appointments ORDER BY at`)
	if err != nil {
		return err
	}
	d.screen.say("")
	d.screen.say("The calendar on the %s:", n.name)
	for _, l := range lines {
		d.screen.say("%s", strings.TrimRight(l, " "))
	}
	return nil
}
