package agent

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
)

// talker is a connection that says the same for ever.
type talker struct {
	connection
	reply kvstore.Changes
}

func (t talker) Watch(ctx context.Context, _, _ string, _ int64, fn func(kvstore.Changes) error) error {
	for {
		if err := fn(t.reply); err != nil {
			return err
		}
	}
}

func (t talker) Range(context.Context, string, string, int64, int64) (kvstore.Range, error) {
	return kvstore.Range{KVs: []kvstore.KV{t.reply.Changes[0].KV}}, nil
}

// TestR07_FloodOfHeartbeats: also what is no service is taken at the cluster's share
// of the processors, and the own cluster's without limit.
func TestR07_FloodOfHeartbeats(t *testing.T) {
	many := kvstore.Changes{Changes: make([]kvstore.Change, 100_000)}
	fat := kvstore.Changes{Changes: []kvstore.Change{{KV: kvstore.KV{Value: make([]byte, 4<<20)}}}}
	for name, flood := range map[string]struct {
		reply kvstore.Changes
		cost  time.Duration
	}{
		"short": {kvstore.Changes{Changes: make([]kvstore.Change, 1)}, replyCost + changeCost},
		"many":  {many, 100_000 * changeCost},
		"fat":   {fat, (4 << 20) * byteCost},
	} {
		synctest.Test(t, func(t *testing.T) {
			const lasts = 10 * time.Minute
			ctx, cancel := context.WithTimeout(t.Context(), lasts)
			defer cancel()
			cfg := Config{ClusterName: "home"}.withDefaults()
			r, taken := sideReader{talker{reply: flood.reply}, newFlow(cfg, "west")}, 0
			_ = r.Watch(ctx, "", "", 0, func(kvstore.Changes) error { taken++; return nil })
			share := time.Duration(cfg.ClusterShare * float64(runtime.GOMAXPROCS(0)) * float64(lasts))
			if most := int((share+sideBurst)/flood.cost) + 2; taken > most || taken < 2 {
				t.Errorf("%s: %d replies were taken in %v, at most %d are paid for", name, taken, lasts, most)
			}
			if _, err := r.Range(ctx, "", "", 0, 0); err == nil {
				t.Errorf("%s: a listing is read of who is in debt", name)
			}
			own := sideReader{talker{reply: flood.reply}, newFlow(cfg, "home")}
			if _, err := own.Range(ctx, "", "", 0, 0); err != nil {
				t.Errorf("%s: of the own cluster: %v", name, err)
			}
		})
	}
}
