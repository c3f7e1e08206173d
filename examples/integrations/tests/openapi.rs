//! The described handlers: they serve, and their descriptions say nothing of sessions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, reason = "its `main` is for its users")]
#[path = "../src/bin/openapi.rs"]
mod example;
mod support;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::support::{Kind, Site};

#[tokio::test]
async fn handlers_with_sessions_are_described_and_serve() {
    for kind in Kind::ALL {
        let site = Site::new(kind, 2).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = example::app(site.pool.clone());
        tokio::spawn(axum::serve(listener, app).into_future());
        let client = reqwest::Client::new();
        for (by, left) in [("aide", 9), ("utoipa", 8)] {
            let url = format!("http://{address}/{by}");
            let api = client.get(format!("{url}/openapi.json")).send().await;
            let api: Value = api.unwrap().json().await.unwrap();
            let read = &api["paths"]["/items/{id}"]["get"];
            let take = &api["paths"]["/items/{id}/take"]["post"];
            for operation in [read, take] {
                assert_eq!(operation["parameters"].as_array().unwrap().len(), 1, "{by}");
                assert_eq!(operation["parameters"][0]["name"], "id", "{by}");
                assert_eq!(operation["requestBody"], Value::Null, "{by}");
                assert!(operation["responses"]["200"].is_object(), "{by}");
            }
            assert!(take["responses"]["409"].is_object(), "{by}");

            let item = json!({ "id": 1, "name": "lamp", "pieces": left });
            let taken = client.post(format!("{url}/items/1/take")).send().await;
            assert_eq!(taken.unwrap().json::<Value>().await.unwrap(), item);
            let read = client.get(format!("{url}/items/1")).send().await;
            assert_eq!(read.unwrap().json::<Value>().await.unwrap(), item);
            let gone = client.get(format!("{url}/items/9")).send().await;
            assert_eq!(gone.unwrap().status(), 404);
        }
        assert_eq!(site.pieces(1).await, 8, "{kind:?}");
        site.assert_whole().await;
    }
}
