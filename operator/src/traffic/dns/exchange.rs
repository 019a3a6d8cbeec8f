//! One DNS message over TCP, its answer, and the signatures of both.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType, TSigner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::traffic::{ANSWER_LIMIT, TrafficError};

/// Asks a server for a record set; the answer is authoritative and well.
pub(super) async fn query(server: &str, name: &Name, kind: RecordType) -> Result<Message, TrafficError> {
    let mut message = Message::query();
    message.add_query(Query::query(name.clone(), kind));
    let bytes = encode(&message, server)?;
    let answer = decode(&message, &send(server, &bytes).await?, server)?;
    well(&answer, server)?;
    if !answer.metadata.authoritative {
        return Err(TrafficError::Unfit {
            target: target(server),
            problem: format!("it is no authority for {name}: correct spec.traffic.dns.servers"),
        });
    }
    Ok(answer)
}

/// Sends a signed update; the answer says so, signed.
pub(super) async fn update(server: &str, mut message: Message, key: &TSigner) -> Result<(), TrafficError> {
    debug_assert_eq!(message.metadata.op_code, OpCode::Update);
    let garbled = |detail: String| TrafficError::Garbled {
        target: target(server),
        detail,
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let verifier = message
        .finalize(key, now)
        .map_err(|error| garbled(format!("the update cannot be signed: {error}")))?;
    let bytes = send(server, &encode(&message, server)?).await?;
    // A server that does not accept the key cannot sign its answer.
    let answer = decode(&message, &bytes, server)?;
    well(&answer, server)?;
    let Some(mut verifier) = verifier else {
        return Err(garbled("the update was not signed".to_owned()));
    };
    match verifier.verify(&bytes) {
        Ok(_) => Ok(()),
        Err(error) => Err(garbled(format!("the answer is not signed with our key: {error}"))),
    }
}

pub(super) fn target(server: &str) -> String {
    format!("the name server {server}")
}

fn encode(message: &Message, server: &str) -> Result<Vec<u8>, TrafficError> {
    message.to_vec().map_err(|error| TrafficError::Garbled {
        target: target(server),
        detail: format!("the question cannot be written down: {error}"),
    })
}

fn decode(question: &Message, bytes: &[u8], server: &str) -> Result<Message, TrafficError> {
    let garbled = |detail: String| TrafficError::Garbled {
        target: target(server),
        detail,
    };
    let answer = Message::from_vec(bytes).map_err(|error| garbled(error.to_string()))?;
    if answer.metadata.id != question.metadata.id || answer.metadata.op_code != question.metadata.op_code {
        return Err(garbled("the answer belongs to another question".to_owned()));
    }
    Ok(answer)
}

fn well(answer: &Message, server: &str) -> Result<(), TrafficError> {
    let detail = match answer.metadata.response_code {
        ResponseCode::NoError => return Ok(()),
        ResponseCode::NotAuth => {
            "it does not accept the key, its signature or its right to update the record, or is no primary of the \
             zone: correct spec.traffic.dns.tsig, its Secret, the server's rules, or spec.traffic.dns.primary (NOTAUTH)"
                .to_owned()
        }
        ResponseCode::Refused => {
            "the key may not do this: allow it to update the record (REFUSED)".to_owned()
        }
        ResponseCode::NXRRSet => "the record was changed by somebody else meanwhile (NXRRSET)".to_owned(),
        ResponseCode::NXDomain => "there is no such name (NXDOMAIN)".to_owned(),
        ResponseCode::NotZone => "the name is not in spec.traffic.dns.zone (NOTZONE)".to_owned(),
        other => format!("it answers: {other}"),
    };
    Err(TrafficError::Refused {
        target: target(server),
        detail,
    })
}

async fn send(server: &str, message: &[u8]) -> Result<Vec<u8>, TrafficError> {
    let unreachable = |detail: String| TrafficError::Unreachable {
        target: target(server),
        detail,
    };
    match timeout(ANSWER_LIMIT, talk(server, message)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable(format!(
            "no answer within {} s",
            ANSWER_LIMIT.as_secs()
        ))),
    }
}

async fn talk(server: &str, message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::other("the message is too long"))?;
    let mut stream = TcpStream::connect(server).await?;
    stream
        .write_all(&[&length.to_be_bytes(), message].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
