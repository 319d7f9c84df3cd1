package report

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/wire"
)

func (w *Writer) token(ctx context.Context, ask *wire.TokenAsk, answer *wire.TokenAnswer) error {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: ask.GetAudiences(),
		BoundObjectRef: &authenticationv1.BoundObjectReference{
			Kind: "Pod", APIVersion: "v1", Name: ask.GetPodName(), UID: types.UID(ask.GetPodUid()),
		},
	}}
	if s := ask.GetExpirationSeconds(); s > 0 {
		request.Spec.ExpirationSeconds = &s
	}
	got, err := w.asNode.CoreV1().ServiceAccounts(ask.GetNamespace()).CreateToken(ctx, ask.GetServiceAccount(), request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("token of service account %s/%s for pod %s: %w", ask.GetNamespace(), ask.GetServiceAccount(), ask.GetPodName(), err)
	}
	answer.Token = got.Status.Token
	answer.ExpiresUnix = got.Status.ExpirationTimestamp.Unix()
	return nil
}
