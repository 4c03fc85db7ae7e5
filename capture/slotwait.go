package capture

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// slotQuiet is how long the creation of a slot may wait before it is told for whom.
	slotQuiet = 2 * time.Second
	// slotTold is how long it waits from one telling to the next.
	slotTold = 30 * time.Second
)

// createSlot creates the slot. The server waits until all transactions that have written anywhere in it, and were open, have ended
// (SnapBuildWaitSnapshot): for as long as that takes, since whoever gives up and begins anew waits for the next ones, too.
func createSlot(ctx context.Context, conn *pgx.Conn, o SetupOptions, sql string) error {
	if _, err := conn.Exec(ctx, "SET lock_timeout = 0"); err != nil {
		return err
	}
	if o.Waits != nil {
		telling, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { tellWaits(telling, o, conn.PgConn().PID()) })
		defer wg.Wait()
		defer cancel()
	}
	_, err := conn.Exec(ctx, sql)
	return err
}

// tellWaits tells for whom a session waits until ctx ends.
func tellWaits(ctx context.Context, o SetupOptions, pid uint32) {
	for pause := slotQuiet; ; pause = slotTold {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		whom, err := waitsFor(ctx, o.DSN, pid)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			whom = "transactions that are open (who they are it cannot ask: " + err.Error() + ")"
		case whom == "":
			continue
		}
		o.Waits("the creation of the slot waits for " + whom + ": it goes on when they end, and everybody may write meanwhile")
	}
}

// waitsFor describes whom a session waits for; "": for nobody.
func waitsFor(ctx context.Context, dsn string, pid uint32) (string, error) {
	conn, err := connectPlain(ctx, dsn)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `
		SELECT CASE b.pid WHEN 0 THEN 'a prepared transaction (pg_prepared_xacts)' ELSE format('the transaction of process %s, of user %s in database %s, which is open for %s',
			b.pid, coalesce(a.usename, '?'), coalesce(a.datname, '?'), coalesce(date_trunc('second', clock_timestamp() - a.xact_start)::text, '?')) END
		FROM unnest(pg_blocking_pids($1)) b(pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid ORDER BY 1`, int32(pid))
	if err != nil {
		return "", fmt.Errorf("read pg_blocking_pids: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", fmt.Errorf("read pg_blocking_pids: %w", err)
	}
	return strings.Join(all, " and "), nil
}
