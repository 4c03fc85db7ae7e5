package pgcluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// SetNextID makes a cluster that was stopped by Fast give out transaction ids from id on, with their epoch in the
// upper half, as it would after so many transactions: what pg_resetwal can do, but the WAL and the slots stay. The
// pages of pg_xact that belong to the ids must be there, as those of ids that were given out before are; rows of these
// ids must be frozen. Their commit timestamps are forgotten.
func (c *Cluster) SetNextID(id uint64) error {
	c.change.Lock()
	defer c.change.Unlock()
	if c.running() != nil {
		return errors.New("set the next transaction id: the server runs")
	}
	// The server takes it from pg_control's copy of the last checkpoint (src/include/catalog/pg_control.h;
	// StartupXLOG, from version 15 on).
	const checkPointCopy = 40
	const nextXID, newestCommitTSXID = checkPointCopy + 24, checkPointCopy + 76
	control := filepath.Join(c.DataDir(), "global", "pg_control")
	content, err := os.ReadFile(control)
	if err == nil {
		err = patchControl(content, func() {
			binary.NativeEndian.PutUint64(content[nextXID:], id)
			binary.NativeEndian.PutUint32(content[newestCommitTSXID:], uint32(id-1))
		})
	}
	if err == nil {
		err = os.WriteFile(control, content, 0o600)
	}
	if err != nil {
		return fmt.Errorf("set the next transaction id in %s: %w", control, err)
	}
	return nil
}
